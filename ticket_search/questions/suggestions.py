"""A hypothesis about a poor ticket: what it goes by, where it is from, and which flags would test it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..contract.flags import Config, flag, make_config, public_fields, to_plain
from ..contract.keyed import Keyed
from ..running.read_config import find_kind


@dataclass(frozen=True)
class Finding(Keyed):
    """One hypothesis.

    kind: its name, as `rate-too-high`. hypothesis: in one sentence. evidence: the numbers it goes by. source: authors,
    title, year. flags: by field name what to search with instead (`method` may be one, None leaves a flag out); empty
    where the next step is another command. command: to type next. measured: whether a number speaks for it; otherwise
    it is what is tried as a rule. alarm: whether the run is poor by this alone, whatever its gap to the dense network
    is. same_question: whether the search with these flags still is for the same kind of ticket, of the same density.
    """

    kind: str
    hypothesis: str
    evidence: str
    source: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    measured: bool = True
    alarm: bool = False
    same_question: bool = True

    @property
    def can_be_tried(self) -> bool:
        """Whether `--try` carries it out."""
        return bool(self.flags) and self.same_question


def change(config: Config, flags: Mapping[str, Any]) -> Config:
    """A configuration with other flags; with another method, its flags of that method which both have are kept.

    Raises:
        RequestError: what the flags cannot be together.
    """
    kind = find_kind(str(flags.get("method", config.method)))
    known = public_fields(kind.Config)
    plain = {key: value for key, value in to_plain(config).items() if key in known}
    changed = {key: value for key, value in flags.items() if key != "method"}
    values = {key: value for key, value in {**plain, **changed}.items() if value is not None}
    given = [key for key, value in changed.items() if value is not None]
    made = make_config(kind.Config, {**values, "method": kind.name}, given)
    return made.allowing(config.leaves, config.origin)


def with_seed(config: Config, seed: int) -> Config:
    """The configuration with another seed, also of what has a seed of its own."""
    if seed == config.seed:
        return config
    return config.model_copy(update={"seed": seed, "init_seed": None, "order_seed": None, "mask_seed": None})


def in_words(flags: Mapping[str, Any], config: Config) -> str:
    """`--lr 0.0012 instead of 0.03`, and `imp with --fraction 0.2 instead of one-shot`."""
    parts = []
    for key, value in flags.items():
        before = getattr(config, key, None)
        if key == "method" or value is None:
            continue
        told = f"{flag(key)} {as_text(value)}"
        known = key in public_fields(type(config)) and before not in (None, value)
        parts.append(f"{told} instead of {as_text(before)}" if known else told)
    if method := flags.get("method"):
        return " ".join([f"{method} instead of {config.method}", *(["with", ", ".join(parts)] if parts else [])])
    return ", ".join(parts)


def as_text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).lower()


def slug(flags: Mapping[str, Any]) -> str:
    """A name for the folder of what is searched with these flags: `lr-0.0012`, `imp-fraction-0.2`."""
    words = [
        str(value) if key == "method" else f"{key}-{as_text(value)}"
        for key, value in flags.items()
        if value is not None
    ]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-")
