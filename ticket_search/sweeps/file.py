"""The file of a sweep: many runs, each checked once, before the first one starts. Imports no torch."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pydantic

from ..contract.errors import Problems, RequestError, describe_expected, nearest_hint, unknown
from ..contract.flags import Config, public_fields, to_plain
from ..contract.leave import FLAGS, Leaves, code_in, leave_here, refuse, without_leave
from ..contract.recipes import studies
from ..contract.text_files import read_toml
from ..methods import find_method, method_names, usable_methods
from ..running.read_config import find_kind
from ..running.request import (
    Request,
    control_problems,
    name_problems,
    parse_seeds,
    words_of,
)
from ..runs.names import default_name
from .asked import check_runs, join, repeated_flags, tell_wrong, text_of
from .choice import Choice, read_choice
from .engines.options import EngineOptions, fields_at
from .predictions import Prediction, Told, fits, prediction_problems, tell, why_none
from .ranges import Search, read_search, stands_alone

# The flags that the default name of a run tells already.
_NAMED = ("method", "model", "data", "density", "seed")
# What only the file of a study has above its tables.
STUDY_KEYS = frozenset({"title", "paper", "question", "published", "statements", "claims", "sweep", "sweeps"})


class _File(pydantic.BaseModel, extra="forbid"):
    about: str = ""
    predictions: tuple[Prediction, ...] = ()
    seeds: Any = None
    controls: tuple[str, ...] = ()
    control_levels: tuple[pydantic.PositiveInt, ...] = ()
    controls_on: str = ""
    controls_for: tuple[dict[str, Any], ...] = ()
    base: dict[str, Any] = {}
    grid: dict[str, Any] | list[dict[str, Any]] = {}
    runs: list[dict[str, Any]] = []
    choose: dict[str, Any] = {}
    engine: EngineOptions = EngineOptions()
    search: dict[str, Any] = {}

    @property
    def grids(self) -> list[dict[str, Any]]:
        """The grids: that of [grid], or each [[grid]]."""
        return self.grid if isinstance(self.grid, list) else [self.grid] if self.grid else []


@dataclass(frozen=True)
class Option:
    """A candidate of [choose] for a run: the flags that it sets, by field name, and the run as it is with them."""

    values: tuple[tuple[str, Any], ...]
    run: SweepRun


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its checked configuration, and what is added to its default name.

    options: where [choose] has candidates for it, the run with each of them; their names say which.
    group: the runs that take the same candidate share this.
    decides: whether it is this run that is tried with each candidate, for all of its group.
    tried: of a run that has taken its candidate after it was tried itself, the name of the trial that it is.
    """

    config: Config
    suffix: str = ""
    options: tuple[Option, ...] = ()
    group: str = ""
    decides: bool = False
    tried: str = ""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return default_name(self.config, find_method(self.config.method).traits.dense) + self.suffix

    @property
    def configuration(self) -> str:
        """The name of its folder without the seed."""
        return self.name.removesuffix(self.suffix).removesuffix(f"-s{self.config.seed}") + self.suffix


@dataclass(frozen=True)
class Sweep:
    """Many runs.

    name: of the folder that the runs lie in, inside the folder of all runs; empty if they lie directly in that.
    runs: each with its configuration.
    controls: the kinds of controls that are made after each run that has a mask.
    control_levels: the levels that are controlled, of a run that has them; if there are none here, its last.
    controls_on: other data on which the controls, the ticket itself and the dense network are trained too.
    controls_for: flags of the runs that are controlled, as {method = "imp", density = 0.1}; all runs if there are none.
    about: what the sweep is for.
    predictions: what was expected of it.
    engine: what each run asks of the engine that carries it out.
    search: from what runs are proposed; there are no others then. `leaves` is what they may import.
    """

    name: str
    runs: tuple[SweepRun, ...]
    controls: tuple[str, ...] = ()
    control_levels: tuple[int, ...] = ()
    controls_on: str = ""
    controls_for: tuple[Mapping[str, Any], ...] = ()
    about: str = ""
    predictions: tuple[Prediction, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)
    search: Search | None = None
    leaves: Leaves = field(default_factory=dict)

    def controls_of(self, config: Config) -> tuple[str, ...]:
        """The kinds of controls that are made after a run."""
        wanted = not self.controls_for or any(fits(config, flags) for flags in self.controls_for)
        return self.controls if wanted else ()


def read_sweep(
    path: str | os.PathLike[str], threads: int | None = None, code: Mapping[str, str | None] | None = None
) -> Sweep:
    """Read a sweep's file and check every run of it.

        seeds = "0-4"                   # or [0, 1, 7] or "0-2,5"; the seed of [base] if not given
        controls = ["reinit", "shuffle"]
        control_levels = [3, 5]
        controls_on = "mnist1d-fresh"   # the controls are trained on these data too
        controls_for = [{method = "imp"}]   # the controls of these runs only
        [base]                          # flags of every run by field name; config = "RECIPE" gives them first values
        epochs = 5
        [base.imp]                      # of this method only
        rewind = "100it"
        [grid]                          # every combination; [[grid]], again and again, where there are several
        method = ["imp", "snip"]
        density = [0.1, 0.2]
        [[runs]]                        # beside the grid: flags laid over those of [base]
        method = "dense"
        [choose]                        # of candidates, the best on validation at the first seed
        lr = [0.01, 0.1, 1.0]
        [choose.snip]                   # of this method only
        lr = [1e-4, 1e-3]
        [choose.at]                     # tried at this density for all of them; if not given, at each by itself
        density = 0.1

    Args:
        path: the file. The sweep's folder has its name.
        threads: CPU threads of each run. Where neither this nor the file says how many, it is 1, so that the tickets do
            not depend on how many runs go on at the same time.
        code: the functions `module:function` that runs of the file may import, as `{"model": "my_nets:small"}`, with
            commas between several, by `model`, `data`, `loss` and `metric`. A file by itself gives no leave to import
            anything. Where nothing in the file says which model (data, ...), the first of them is that of all runs.

    Raises:
        RequestError: every problem of the file and of its runs at once.
    """
    table = read_table(Path(path))
    return make_sweep(table, Path(path).stem, threads, path, code)


def read_table(path: Path) -> dict[str, Any]:
    """The table of a sweep's file.

    Raises:
        RequestError: it cannot be read, or is a study.
    """
    if not path.exists() and str(path) in studies():
        raise RequestError(f"{path} is a study of this package: `ticket study {path}` carries it out")
    table = read_toml(path)
    if set(table) & STUDY_KEYS and not set(table) & {"base", "grid", "runs", "choose"}:
        raise RequestError(f"{path} is a study, and no sweep: `ticket study {path}` carries it out")
    return table


def make_sweep(
    table: dict[str, Any],
    name: str,
    threads: int | None = None,
    path: str | os.PathLike[str] = "",
    code: Mapping[str, str | None] | None = None,
    joined: bool = False,
) -> Sweep:
    """The sweep that a table asks for (see `read_sweep`), under a name; `path` is the file that it is from.

    One of several that are `joined` in a study may predict something about the runs of the others.

    Raises:
        RequestError: every problem of the table and of its runs at once.
    """
    problems = Problems()
    file = _read_file(table, problems)
    problems.add(*_table_problems(file))
    words = {key: text.split(",") for key, text in (code or {}).items() if text}
    problems.add(*(unknown("flag", key, FLAGS) for key in words if key not in FLAGS))
    search = read_search(file.search, problems)
    if file.search:
        problems.add(*stands_alone(table, list(search.ranges) if search else []))
    own = search.corners() if search else _expand(file)
    choice = read_choice(file.choose, problems)
    said = [file.base, *own, *(table for table in file.base.values() if isinstance(table, dict))]
    file.base |= {key: given[0] for key, given in words.items() if not any(key in flags for flags in said)}
    asked = [join(file.base, flags, threads, problems) for flags in own]
    spread = [choice.spread(run.method, flags) for run, flags in zip(asked, own, strict=True)]
    each = [flags for candidates in spread for flags in candidates]
    whole = [join(file.base, flags, threads, problems) for flags in each]
    configs = check_runs(whole, each, problems)
    seeds = _seeds(file, own, problems)
    leaves = leave_here(*(word for given in words.values() for word in given))
    problems.add(*_refused_code([config for config in configs if config], file.controls_on, path, leaves))
    allowed = [config and config.allowing(leaves) for config in configs]
    runs = [] if file.search else _make_runs(own, spread, allowed, seeds, choice, problems)
    problems.add(*_repeated(runs), *repeated_flags(whole, each, configs))
    if search:
        search = replace(search, base=file.base, threads=threads, seeds=seeds)
    folder = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    problems.add(*_idle_tables(file, [run.method for run in asked]))
    sweep = Sweep(
        folder, tuple(runs), file.controls, file.control_levels, file.controls_on, file.controls_for, file.about,
        file.predictions, file.engine, search, leaves,
    )  # fmt: skip
    there = tell_runs(sweep) + tell_wrong(whole, configs)
    problems.add(*_wrong_controls(sweep, there))
    problems.add(*(prediction_problems(file.predictions, there) if not joined else ()))
    problems.raise_if_any()
    return sweep


def tell_runs(sweep: Sweep, name: str = "") -> list[Told]:
    """The runs of a sweep as the flags of a prediction name them; in a study it has a `name` of its own."""
    return [
        tell(
            run.configuration,
            name or sweep.name,
            [option.run.config for option in run.options] or [run.config],
            find_method(run.config.method).traits.dense,
        )
        for run in sweep.runs
    ]


def _wrong_controls(sweep: Sweep, there: Sequence[Told]) -> list[str]:
    """Why controls cannot be made of some runs, and which flags of those to be controlled no run has."""
    if not sweep.controls:
        return []
    found = [
        f"controls: {run.name} {why}"
        for run in sweep.runs
        if (kinds := sweep.controls_of(run.config))
        for why in control_problems(run.config, kinds)
    ]
    return found + [f"controls_for {flags}: {why}" for flags in sweep.controls_for if (why := why_none(flags, there))]


def _make_runs(
    own: Sequence[Mapping[str, Any]],
    spread: Sequence[Sequence[Mapping[str, Any]]],
    configs: Sequence[Config | None],
    seeds: Sequence[int],
    choice: Choice,
    problems: Problems,
) -> list[SweepRun]:
    """The runs: for each of `own` and each seed one, whose options are its `spread` over the candidates.

    Args:
        own: the flags that each run has for itself.
        spread: for each of these the same with each candidate, or itself alone.
        configs: checked, of all of `spread` one after another.
        seeds: of each run, or none where it has its own.
        choice: what is chosen.
        problems: what is added to.
    """
    suffixes = iter(_suffixes([flags for candidates in spread for flags in candidates]))
    checked, runs = iter(configs), []
    for flags, candidates, short in zip(own, spread, _suffixes(own), strict=True):
        made = [(option, next(checked), next(suffixes)) for option in candidates]
        usable = [(option, config, suffix) for option, config, suffix in made if config is not None]
        if not usable:
            continue
        for seed in seeds or (usable[0][1].seed,):
            options = tuple(
                Option(choice.values_in(option), SweepRun(_with_seed(config, seed), suffix))
                for option, config, suffix in usable
            )
            first = options[0].run
            if len(made) > 1:
                # What is chosen is not in the name of the run: others may start from it before that is known.
                first = replace(first, suffix=short, options=options, group=choice.group_of(flags))
            runs.append(first)
    return _let_decide(runs, choice, problems)


def _let_decide(runs: Sequence[SweepRun], choice: Choice, problems: Problems) -> list[SweepRun]:
    """The runs with the deciding one of each group marked: the first that is at what [choose.at] says."""
    deciding: dict[str, int] = {}
    for place, run in enumerate(runs):
        if run.options and choice.is_at(run.config):
            deciding.setdefault(run.group, place)
    for group in dict.fromkeys(run.group for run in runs if run.options and run.group not in deciding):
        places = [place for place, run in enumerate(runs) if run.group == group]
        deciding[group] = places[0]
        if len({repr(to_plain(_with_seed(runs[place].config, 0))) for place in places}) > 1:
            problems.add(
                f"[choose.at] {choice.told_at}: none of the runs {runs[places[0]].configuration}, ... is there"
            )
    marked = set(deciding.values())
    return [replace(run, decides=place in marked) for place, run in enumerate(runs)]


def _refused_code(
    configs: Sequence[Config], controls_on: str, path: str | os.PathLike[str], leaves: Leaves
) -> list[str]:
    """The sentences about the code that a sweep names and that nobody has typed."""
    named = [*(code_in(vars(config)) for config in configs), code_in({"data": controls_on})]
    denied: dict[str, list[str]] = {}
    for key, name in (pair for names in named for pair in without_leave(names, leaves).items()):
        denied.setdefault(key, []).append(name)
    origin = f"the file {path or 'of the sweep'}, which anyone may have written"
    return refuse(origin, {key: ",".join(dict.fromkeys(names)) for key, names in denied.items()}) if denied else []


def sweep_of_seeds(request: Request) -> Sweep:
    """The sweep of `ticket search --seeds`: a run and its controls with each seed, directly in the folder of all runs.

    Raises:
        RequestError: what --seeds gives are no seeds.
    """
    config = request.config
    if config.threads is None:
        config = config.model_copy(update={"threads": 1})
    runs = tuple(SweepRun(_with_seed(config, seed)) for seed in parse_seeds(request.launch["--seeds"]))
    kinds, levels = (words_of(request.launch, name) for name in ("--controls", "--control-levels"))
    return Sweep("", runs, kinds, tuple(map(int, levels)))


def _with_seed(config: Config, seed: int) -> Config:
    return config.model_copy(update={"seed": seed})


def _read_file(table: dict[str, Any], problems: Problems) -> _File:
    """The tables of a file. What else is wrong with it is added to `problems`.

    Raises:
        RequestError: base, grid or runs are no tables, so that nothing can be said of the runs.
    """
    try:
        return _File.model_validate(table)
    except pydantic.ValidationError as error:
        for item in error.errors():
            place = ".".join(map(str, item["loc"]))
            if item["type"] == "missing":
                problems.add(f"{place} is missing")
            elif item["loc"][0] == "grid":
                problems.add(f"grid {table['grid']!r}: expected a table of lists, [grid], or several of them, [[grid]]")
            elif item["type"] != "extra_forbidden":
                problems.add(f"{place} {item['input']!r}: {describe_expected(item)}")
            elif item["loc"][0] == "engine":
                *where, key = item["loc"]
                problems.add(f"[{'.'.join(map(str, where))}]: {unknown('key', str(key), fields_at(where))}")
            elif _is_flag(place):
                problems.add(f"{place} is a flag of the runs: it belongs in [base]")
            else:
                problems.add(unknown("key", place, _File.model_fields))
        wrong = {item["loc"][0] for item in error.errors()}
        if wrong & {"base", "grid", "runs"}:
            raise RequestError(problems.found) from None
        return _File.model_validate({key: value for key, value in table.items() if key not in wrong})


def _is_flag(word: str) -> bool:
    return word in ("method", "config", "seed") or any(
        word in public_fields(method.Config) for method in usable_methods()[0]
    )


def _table_problems(file: _File) -> list[str]:
    """What is wrong with a file, apart from the flags of its runs."""
    found = []
    for name, table in file.base.items():
        if isinstance(table, dict):
            if name not in method_names():
                found.append(f"[base.{name}]: {unknown('method', name, method_names())}")
            found += [f"[base.{name}] {key}: it belongs in [base]" for key in ("method", "config") if key in table]
    found += [
        f"grid.{key} {values!r}: expected a list of values, as {key} = [{text_of(values)}]"
        for grid in file.grids
        for key, values in grid.items()
        if not isinstance(values, list) or not values
    ]
    controls = get_args(find_kind("train").Config.model_fields["control"].annotation)
    kinds = [*(kind for kind in controls if kind != "none"), "small-dense"]
    found += [unknown("control", kind, kinds) for kind in file.controls if kind not in kinds]
    found += [] if file.controls_on == "" else name_problems(None, file.controls_on)
    for key in ("control_levels", "controls_on", "controls_for"):
        if getattr(file, key) and not file.controls:
            found.append(f"{key} goes with controls")
    return found


def _idle_tables(file: _File, methods: Sequence[str]) -> list[str]:
    """A sentence for each table of a method of which there is no run: what it says would have no effect."""
    there = sorted(set(methods))
    tables = [("base", file.base), ("choose", file.choose)]
    return [
        f"[{where}.{name}]: there is no run of {name}, the runs are of {', '.join(there)}{nearest_hint(name, there)}"
        for where, table in tables
        for name, inner in table.items()
        if isinstance(inner, dict)
        and name in method_names()
        and name not in there
        and (where, name) != ("choose", "at")
    ]


def _expand(file: _File) -> list[dict[str, Any]]:
    """The flags that each run has for itself: those of the combinations of the grids, then those of the listed runs."""
    combined: list[dict[str, Any]] = []
    for grid in file.grids or ([] if file.runs else [{}]):
        lists = {key: values if isinstance(values, list) else [values] for key, values in grid.items() if values != []}
        combined += [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    return combined + file.runs


def _seeds(file: _File, own: Sequence[Mapping[str, Any]], problems: Problems) -> tuple[int, ...]:
    """The seeds that each run is carried out with; none where each run has its own seed."""
    if file.seeds is None:
        return ()
    where = ["[base]"] if "seed" in file.base else []
    where += [f"[base.{key}]" for key, table in file.base.items() if isinstance(table, dict) and "seed" in table]
    where += ["[grid] or [[runs]]"] if any("seed" in flags for flags in own) else []
    problems.add(*(f"seeds, and seed in {place}: give one of them" for place in where))
    seeds = problems.attempt(lambda: parse_seeds(file.seeds, "seeds"))
    return () if where or seeds is None else seeds


def _suffixes(own: Sequence[Mapping[str, Any]]) -> list[str]:
    """`-KEY-VALUE` for each flag that differs between the runs and is not told by their default names."""
    keys = dict.fromkeys(key for flags in own for key in flags if key not in _NAMED)
    varied = [key for key in keys if len({repr(flags.get(key)) for flags in own}) > 1]
    return [name_of({key: flags[key] for key in varied if key in flags}) for flags in own]


def name_of(flags: Mapping[str, Any]) -> str:
    """`-KEY-VALUE` for each of the flags that default names do not tell."""
    told = "".join(f"-{key.replace('_', '-')}-{text_of(flags[key])}" for key in flags if key not in _NAMED)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", told)


def _repeated(runs: Sequence[SweepRun]) -> list[str]:
    """A sentence for each run that is there twice, and for different runs that would lie in the same folder."""
    configs: dict[str, str] = {}
    found = []
    options = [option.run for run in runs for option in run.options]
    for run in [*options, *(run for run in runs if not run.options)]:
        config, name = repr(to_plain(run.config)), run.name
        if config in configs:
            also = "" if configs[config] == name else f", as {configs[config]} too"
            found.append(f"the run {name} is there twice{also}")
        elif name in configs.values():
            found.append(f"two runs would lie in the folder {name}: give what differs between them in the grid")
        configs.setdefault(config, name)
    return found
