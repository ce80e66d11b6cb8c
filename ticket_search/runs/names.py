"""The names of runs, of the files in their folders, and of their controls."""

from __future__ import annotations

import re

from ..contract.flags import Config
from ..trust.mark import MARK

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
INPUTS = "inputs.json"
TICKET = "ticket.safetensors"
REWIND_POINT = "rewind.safetensors"
COMPACT = "compact.safetensors"
SUMMARY = "summary.json"
CONTROLS = "controls.json"
# The folder of the runs in which a run's controls are trained.
CONTROL_RUNS = "controls"
CONNECT = "connect.json"
CONNECT_PICTURE = "connect.png"
# The folder of the trainings by which it is found out how stable a run's training is.
CONNECT_RUNS = "connect"
# The folder of the searches by which suggestions about a poor run are tried.
DIAGNOSIS_RUNS = "diagnosis"
STATE = "state.pt"
# The state before the newest, for the case that the newest is damaged.
EARLIER_STATE = "state-before.pt"
METRICS = "metrics.jsonl"
# How much worse the network is with each layer pruned alone.
SENSITIVITY = "sensitivity.json"
SENSITIVITY_PICTURE = "sensitivity.png"
# What a logger has been sent of the run.
SENT_TO = {"mlflow": "mlflow.jsonl", "wandb": "wandb.jsonl"}
CHECKSUMS = "checksums.json"
FAILURE = "failure.txt"
# What keeps two processes off one run, and who it is that works on it.
LOCK = ".lock"
HOLDER = ".holder"
# Each of them is written as a temporary file beside it, which then takes its name.
WRITTEN_WHOLE = (
    CONFIG, ENVIRONMENT, TICKET, REWIND_POINT, COMPACT, SUMMARY, CONTROLS, CONNECT, CONNECT_PICTURE, STATE, FAILURE,
    CHECKSUMS, MARK, HOLDER, INPUTS, SENSITIVITY, SENSITIVITY_PICTURE,
)  # fmt: skip

# The controls that are trained to be compared with a ticket of trained weights; those that are trained on other data.
# The last three start from signs or magnitudes only: `ticket signs` makes them.
SIGNS = ("initial-signs", "trained-signs", "magnitudes")
TRAINED = ("reinit", "shuffle", "random", "random-erk", "small-dense", *SIGNS)
ELSEWHERE = ("ticket", "dense", "reinit", "shuffle", "random")
# The controls that are evaluated to be compared with a ticket of frozen weights; those that are trained in its place.
EVALUATED = ("reinit", "shuffle", "random")
SURVIVORS = ("ticket", "reinit", "shuffle")
# The controls that are made where none are asked for.
DEFAULT = ("reinit", "shuffle", "random")
# The controls that move the mask to other positions, weight by weight.
MOVING = ("shuffle", "random", "random-erk")
# The controls that need to know how the ticket's own weights were drawn.
DRAWN = ("reinit", "initial-signs", "trained-signs")


def default_name(config: Config, dense: bool) -> str:
    """METHOD-MODEL-DATA-dDENSITY-sSEED, where the name of a control follows that of the method."""
    method = (
        f"{config.method}-{control}" if (control := getattr(config, "control", "none")) != "none" else config.method
    )
    method += f"-task{task}" if (task := getattr(config, "task", None)) is not None else ""
    parts = (method, config.model, config.data, _density_part(config, dense), f"s{config.seed}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _density_part(config: Config, dense: bool) -> str:
    """How much a run keeps, as far as its flags say so before it is finished."""
    if dense:
        return "d1"
    if getattr(config, "tolerance", None) is not None:
        return f"tolerance{config.tolerance:g}"  # type: ignore[attr-defined]
    return f"d{config.density:g}" + ("-by-layer" if getattr(config, "densities", ()) else "")
