"""What runs, their files and their controls are called."""

from __future__ import annotations

import re

from ..contract.flags import Config

TICKET = "ticket.safetensors"
REWIND_POINT = "rewind.safetensors"
COMPACT = "compact.safetensors"
SUMMARY = "summary.json"
CONTROLS = "controls.json"

# What a ticket that is trained is compared with, and what is needed on other data than its own.
TRAINED = ("reinit", "shuffle", "random", "random-erk", "small-dense")
ELSEWHERE = ("ticket", "dense", "reinit", "shuffle", "random")
# What a ticket of frozen weights is compared with, as it is; trained, the first is the ticket itself.
EVALUATED = ("reinit", "shuffle", "random")
SURVIVORS = ("ticket", "reinit", "shuffle")
DEFAULT = ("reinit", "shuffle", "random")
# Controls that put the mask elsewhere, weight by weight.
MOVING = ("shuffle", "random", "random-erk")


def default_name(config: Config, dense: bool) -> str:
    """METHOD-MODEL-DATA-dDENSITY-sSEED, with a control's name behind the method."""
    method = (
        f"{config.method}-{control}" if (control := getattr(config, "control", "none")) != "none" else config.method
    )
    parts = (method, config.model, config.data, _density_part(config, dense), f"s{config.seed}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _density_part(config: Config, dense: bool) -> str:
    """How much a run keeps, as far as its flags say it."""
    if dense:
        return "d1"
    if getattr(config, "tolerance", None) is not None:
        return f"tolerance{config.tolerance:g}"  # type: ignore[attr-defined]
    return f"d{config.density:g}" + ("-by-layer" if getattr(config, "densities", ()) else "")
