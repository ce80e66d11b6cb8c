"""The runs of a sweep as its file asks for them: the flags of each, joined and checked. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from supermask.masks.texts import harmless

from ..contract.errors import Problems
from ..contract.flags import Config
from ..contract.recipes import find_recipe
from ..running.request import DEFAULT_METHOD, Request, check_request, default_model
from .predictions import Told


@dataclass(frozen=True)
class Asked:
    """A run as it is asked for: its method, the values of its flags, and which of them are not a recipe's."""

    method: str
    values: dict[str, Any]
    given: frozenset[str]


def join(base: Mapping[str, Any], own: Mapping[str, Any], threads: int | None, problems: Problems) -> Asked:
    """Join what a run is told: the values of a recipe, over these those of all runs, of its method, and its own."""
    shared = {key: value for key, value in base.items() if not isinstance(value, dict)}
    config = {**shared, **own}.get("config")
    recipe = problems.attempt(lambda: find_recipe(str(config))) if config is not None else None
    recipe = {key: value for key, value in (recipe or {}).items() if key != "about"}
    method = str({**recipe, **shared, **own}.get("method", DEFAULT_METHOD))
    chosen = {**shared, **base.get(method, {}), **own}
    values = {"threads": 1, **recipe, **chosen} | ({} if threads is None else {"threads": threads})
    named = ("method", "config")
    return Asked(
        method,
        {key: value for key, value in values.items() if key not in named},
        frozenset(chosen).difference(named),
    )


def check_runs(asked: Sequence[Asked], own: Sequence[Mapping[str, Any]], problems: Problems) -> list[Config | None]:
    """The configuration of each run, None where it is wrong. A problem of only some runs names the first of them."""
    configs: list[Config | None] = []
    found: dict[str, list[str]] = {}
    for run, flags in zip(asked, own, strict=True):
        of_run = Problems()
        request = of_run.attempt(partial(_check_run, run))
        configs.append(request.config if request else None)
        for problem in of_run.found:
            found.setdefault(problem, []).append(harmless(describe_flags(flags), 300))
    for problem, where in found.items():
        others = f" and {len(where) - 1} more" if len(where) > 1 else ""
        problems.add(problem if len(where) == len(own) else f"{problem} (in the run {where[0]}{others})")
    return configs


def _check_run(run: Asked) -> Request:
    values = dict(run.values)
    data = str(values.pop("data", Config.model_fields["data"].default))
    model = str(values.pop("model", default_model(run.method)))
    return check_request(run.method, model, data, values, given=run.given, from_file=values, leaves={})


def describe_flags(flags: Mapping[str, Any]) -> str:
    """The flags that a run has for itself, for a sentence."""
    return " ".join(f"{key}={text_of(value)}" for key, value in flags.items()) or "of [base]"


def text_of(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def repeated_flags(
    asked: Sequence[Asked], own: Sequence[Mapping[str, Any]], configs: Sequence[Config | None]
) -> list[str]:
    """A sentence for each run that is there twice, of those with something wrong with them, which have no name yet."""
    wrong = [
        (repr((run.method, sorted(run.values.items(), key=str))), flags)
        for run, flags, config in zip(asked, own, configs, strict=True)
        if config is None
    ]
    seen = Counter(key for key, _ in wrong)
    return [f"the run {describe_flags(flags)} is there twice" for key, flags in dict(wrong).items() if seen[key] > 1]


def tell_wrong(asked: Sequence[Asked], configs: Sequence[Config | None]) -> list[Told]:
    """The runs with something wrong with them, of which only the flags that are given are known."""
    return [
        Told("", {"method": [run.method], **{key: [value] for key, value in run.values.items()}}, whole=False)
        for run, config in zip(asked, configs, strict=True)
        if config is None
    ]
