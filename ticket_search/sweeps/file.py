"""The file of a sweep: many runs, each checked before the first one starts. Imports no torch."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pydantic

from ..contract.errors import RequestError, unknown
from ..contract.flags import Config, find_recipe, public_fields, read_toml, to_plain
from ..methods import find_method, method_names, usable_methods
from ..running.read_config import find_kind
from ..running.request import DEFAULT_METHOD, Request, control_problems, name_problems, parse_seeds, validate
from ..runs.names import default_name

# What the default name of a run says already.
_NAMED = ("method", "model", "data", "density", "seed")


class _File(pydantic.BaseModel, extra="forbid"):
    about: str = ""
    seeds: Any = None
    controls: tuple[str, ...] = ()
    control_levels: tuple[pydantic.PositiveInt, ...] = ()
    controls_on: str = ""
    base: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: what is asked for, its checked configuration, and what is added to its default name."""

    request: Request
    config: Config
    suffix: str = ""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return default_name(self.config, find_method(self.config.method).traits.dense) + self.suffix

    @property
    def configuration(self) -> str:
        """The name without the seed."""
        return self.name.removesuffix(self.suffix).removesuffix(f"-s{self.config.seed}") + self.suffix


@dataclass(frozen=True)
class Sweep:
    """Many runs.

    name: of the folder that they lie in, inside the folder of all runs; empty where they lie in that itself.
    controls: the kinds that follow each run which has a mask.
    control_levels: the levels that they are of, where a run has them; its last if there are none.
    controls_on: other data that they are trained on too, with the ticket itself and the dense network.
    """

    name: str
    runs: tuple[SweepRun, ...]
    controls: tuple[str, ...] = ()
    control_levels: tuple[int, ...] = ()
    controls_on: str = ""
    about: str = ""


def read_sweep(path: str | os.PathLike[str], threads: int | None = None) -> Sweep:
    """Read a sweep's file and check every run of it.

        seeds = "0-4"                   # or [0, 1, 7] or "0-2,5"; the seed of [base] if not given
        controls = ["reinit", "shuffle"]
        control_levels = [3, 5]
        controls_on = "mnist1d-fresh"   # other data, too
        [base]                          # flags of every run by field name; config = "RECIPE" gives them first values
        epochs = 5
        [base.imp]                      # of this method only
        rewind = "100it"
        [grid]                          # every combination
        method = ["imp", "snip"]
        density = [0.1, 0.2]
        [[runs]]                        # beside the grid: flags laid over those of [base]
        method = "dense"

    Args:
        path: the file; its name is the name of the sweep's folder.
        threads: CPU threads of each run; 1 where neither this nor the file says, so that the tickets do not depend on
            how many runs go on at once.

    Raises:
        RequestError: every problem of the file and of its runs at once.
    """
    return make_sweep(read_toml(Path(path)), Path(path).stem, threads)


def make_sweep(table: dict[str, Any], name: str, threads: int | None = None) -> Sweep:
    """The sweep of a name that a table asks for (see `read_sweep`).

    Raises:
        RequestError: every problem of the table and of its runs at once.
    """
    problems: list[str] = []
    file = _read_file(table, problems)
    problems += _table_problems(file)
    own = _expand(file)
    requests = [_request(file.base, flags, threads, problems) for flags in own]
    configs = _validate(requests, own, problems)
    seeds = _seeds(file, own, problems)
    runs = [
        SweepRun(replace(request, values={**request.values, "seed": seed}), _with_seed(config, seed), suffix)
        for request, config, suffix in zip(requests, configs, _suffixes(own), strict=True)
        if config is not None
        for seed in seeds or (config.seed,)
    ]
    problems += _repeated(runs)
    if file.controls:
        problems += [
            f"controls: {run.name} {why}" for run in runs for why in control_problems(run.config, file.controls)
        ]
    if problems:
        raise RequestError(dict.fromkeys(problems))
    folder = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return Sweep(folder, tuple(runs), file.controls, file.control_levels, file.controls_on, file.about)


def sweep_of_seeds(request: Request) -> Sweep:
    """The sweep of `ticket search --seeds`: one configuration, its runs in the folder of all runs.

    Raises:
        RequestError: seeds that are none.
    """
    values = {"threads": 1, **request.values}
    _, config = validate(request.method, request.model, request.data, values, given=request.given)
    runs = [
        SweepRun(replace(request, values={**values, "seed": seed}), _with_seed(config, seed))
        for seed in parse_seeds(request.launch["--seeds"])
    ]
    return Sweep("", tuple(runs))


def _with_seed(config: Config, seed: int) -> Config:
    return config.model_copy(update={"seed": seed})


def _read_file(table: dict[str, Any], problems: list[str]) -> _File:
    """The file's tables; where these are none, nothing more can be said of it.

    Raises:
        RequestError: a base, grid or runs of another shape.
    """
    try:
        return _File.model_validate(table)
    except pydantic.ValidationError as error:
        for item in error.errors():
            place = ".".join(map(str, item["loc"]))
            if item["type"] != "extra_forbidden":
                problems.append(f"{place} {item['input']!r}: expected {item['msg'].removeprefix('Input should be ')}")
            elif _is_flag(place):
                problems.append(f"{place} is a flag of the runs: it belongs in [base]")
            else:
                problems.append(unknown("key", place, _File.model_fields))
        wrong = {item["loc"][0] for item in error.errors()}
        if wrong & {"base", "grid", "runs"}:
            raise RequestError(problems) from None
        return _File.model_validate({key: value for key, value in table.items() if key not in wrong})


def _is_flag(word: str) -> bool:
    return word in ("method", "config", "seed") or any(
        word in public_fields(method.Config) for method in usable_methods()[0]
    )


def _table_problems(file: _File) -> list[str]:
    """What is wrong with the file beside the flags of its runs."""
    found = []
    for name, table in file.base.items():
        if isinstance(table, dict):
            if name not in method_names():
                found.append(f"[base.{name}]: {unknown('method', name, method_names())}")
            found += [f"[base.{name}] {key}: it belongs in [base]" for key in ("method", "config") if key in table]
    found += [
        f"grid.{key} {values!r}: expected a list of values, as {key} = [{_text(values)}]"
        for key, values in file.grid.items()
        if not isinstance(values, list) or not values
    ]
    controls = get_args(find_kind("train").Config.model_fields["control"].annotation)
    kinds = [*(kind for kind in controls if kind != "none"), "small-dense"]
    found += [unknown("control", kind, kinds) for kind in file.controls if kind not in kinds]
    found += [] if file.controls_on == "" else name_problems(None, file.controls_on)
    for key in ("control_levels", "controls_on"):
        if getattr(file, key) and not file.controls:
            found.append(f"{key} goes with controls")
    return found


def _expand(file: _File) -> list[dict[str, Any]]:
    """The flags of each run that are its own: the combinations of the grid, then the runs that are listed."""
    lists = {key: values if isinstance(values, list) else [values] for key, values in file.grid.items() if values != []}
    grid = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    return (grid if file.grid or not file.runs else []) + file.runs


def _request(base: Mapping[str, Any], own: Mapping[str, Any], threads: int | None, problems: list[str]) -> Request:
    """A run as asked for: a recipe's values, over them those of all runs, of its method, and its own."""
    shared = {key: value for key, value in base.items() if not isinstance(value, dict)}
    config = {**shared, **own}.get("config")
    recipe: dict[str, Any] = {}
    if config is not None:
        try:
            recipe = {key: value for key, value in find_recipe(str(config)).items() if key != "about"}
        except RequestError as error:
            problems += error.problems
    method = str({**recipe, **shared, **own}.get("method", DEFAULT_METHOD))
    chosen = {**shared, **base.get(method, {}), **own}
    values = {"threads": 1, **recipe, **chosen} | ({} if threads is None else {"threads": threads})
    given = frozenset(chosen) - {"method", "config"}
    return Request(method, {key: value for key, value in values.items() if key not in ("method", "config")}, {}, given)


def _validate(
    requests: Sequence[Request], own: Sequence[Mapping[str, Any]], problems: list[str]
) -> list[Config | None]:
    """The configuration of each run; a problem of only some runs names the first of them."""
    configs: list[Config | None] = []
    found: dict[str, list[str]] = {}
    for request, flags in zip(requests, own, strict=True):
        try:
            given, typed = request.given, request.values.keys()
            _, config = validate(request.method, request.model, request.data, request.values, given=given, typed=typed)
        except RequestError as error:
            configs.append(None)
            for problem in error.problems:
                found.setdefault(problem, []).append(_describe(flags))
        else:
            configs.append(config)
    for problem, where in found.items():
        others = f" and {len(where) - 1} more" if len(where) > 1 else ""
        problems.append(problem if len(where) == len(own) else f"{problem} (in the run {where[0]}{others})")
    return configs


def _describe(flags: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_text(value)}" for key, value in flags.items()) or "of [base]"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seeds(file: _File, own: Sequence[Mapping[str, Any]], problems: list[str]) -> tuple[int, ...]:
    """The seeds of every run; none where each has its own."""
    if file.seeds is None:
        return ()
    where = ["[base]"] if "seed" in file.base else []
    where += [f"[base.{key}]" for key, table in file.base.items() if isinstance(table, dict) and "seed" in table]
    where += ["[grid] or [[runs]]"] if any("seed" in flags for flags in own) else []
    problems += [f"seeds, and seed in {place}: give one of them" for place in where]
    try:
        seeds = parse_seeds(file.seeds, "seeds")
    except RequestError as error:
        problems += error.problems
        return ()
    return () if where else seeds


def _suffixes(own: Sequence[Mapping[str, Any]]) -> list[str]:
    """`-KEY-VALUE` for each flag that differs between runs and is not in their default names."""
    keys = dict.fromkeys(key for flags in own for key in flags if key not in _NAMED)
    varied = [key for key in keys if len({repr(flags.get(key)) for flags in own}) > 1]
    return [
        re.sub(
            r"[^A-Za-z0-9._-]+", "-",
            "".join(f"-{key.replace('_', '-')}-{_text(flags[key])}" for key in varied if key in flags),
        )
        for flags in own
    ]  # fmt: skip


def _repeated(runs: Sequence[SweepRun]) -> list[str]:
    """Runs that are there twice, and different ones whose folders would be the same."""
    configs: dict[str, str] = {}
    found = []
    for run in runs:
        config, name = repr(to_plain(run.config)), run.name
        if config in configs:
            also = "" if configs[config] == name else f", as {configs[config]} too"
            found.append(f"the run {name} is there twice{also}")
        elif name in configs.values():
            found.append(f"two runs would lie in the folder {name}: give what differs between them in the grid")
        configs.setdefault(config, name)
    return found
