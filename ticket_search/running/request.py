"""What was asked for, in words or in Python: checked once, before anything heavy is imported or anything is written."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from supermask import weights
from supermask.plugins.other_names import meant_density

from ..contract.errors import Problems, RequestError, unknown, unknown_flag
from ..contract.flags import Config, flag, is_switch, is_zero, make_config, public_fields
from ..contract.leave import FLAGS, Leaves, describe_function, leave_here
from ..contract.method import Method
from ..contract.recipes import find_recipe
from ..data.sources import source_names, without_version
from ..methods import own_methods, usable_methods
from ..models.names import is_factory, model_names
from ..runs.names import CONFIG, DRAWN, EVALUATED, MOVING, TRAINED
from ..trust.mark import leave_of
from .read_config import find_kind

DEFAULT_METHOD = "edge-popup"
# How the name of data begins that came as arrays.
ARRAYS = "arrays-"
_MOST_SEEDS = 10_000

# What is not part of a run's configuration: `flag: (placeholder or None where it takes no value, help)`.
LAUNCH_FLAGS: dict[str, tuple[str | None, str]] = {
    "--method": ("NAME", f"the search method; {DEFAULT_METHOD} if not given"),
    "--config": ("NAME|FILE", "a recipe of this package, or a .toml file, that sets flags; flags typed beside it win"),
    "--sparsity": ("S", "the fraction of the maskable weights that is dropped: the same as --density 1-S"),
    "--runs": ("DIR", "the folder in which each run has a folder of its own; ./runs if not given"),
    "--name": ("NAME", "the name of the run's folder; METHOD-MODEL-DATA-dDENSITY-sSEED if not given"),
    "--seeds": ("0-4", "search once with each of these seeds, as 0-4 or 0-2,7, on 1 CPU thread if not --threads N"),
    "--controls": ("A,B,...", "the controls that are made after each search of --seeds, as reinit,shuffle,random"),
    "--control-levels": ("A,B,...", "the levels that --controls makes them for, as 1,3; the last if not given"),
    "--jobs": ("N", "how many of the searches of --seeds run at the same time; 1 if not given"),
    "--max-minutes": ("M", "save and stop after M minutes, with exit status 75; the same command goes on"),
    "--again": (None, "search once more where a finished run of the same configuration would be shown"),
    "--dry-run": (None, "print what would be done and how long it would take, and write nothing"),
    "--json": (None, "print the summary, or with --dry-run the plan, as one JSON object"),
    "--help": (None, "show the flags; with --method NAME also those of that method"),
}


@dataclass(frozen=True)
class Request:
    """What was asked for, once it has been checked: `prepare` and the sweeps take it as it is.

    method: the search method.
    config: the configuration with the defaults filled in, but for what depends on the machine (see `resolve`).
    model: the name of the model, or the callable that builds it.
    data: the name of the data set, or the data.
    given: the flags that were typed. A recipe's value may lose its effect by a typed flag (its momentum by --optimizer
        adam); a typed flag may not.
    launch: what is no part of the configuration, by flag (`--runs`, `--json`, ...).
    functions: the loss and the metric that were given as callables; the configuration has their names.
    """

    method: Method
    config: Config
    model: str | Callable[..., Any]
    data: Any
    given: frozenset[str] = frozenset()
    launch: Mapping[str, str] = field(default_factory=dict)
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def asks(self, launch_flag: str) -> bool:
        """Whether a launch flag was given."""
        return launch_flag in self.launch


def read_request(words: Sequence[str]) -> Request:
    """Parse and check the words after `ticket search`.

    Raises:
        RequestError: every problem of the request at once.
    """
    problems = Problems()
    given = read_flags(words, problems, asked_method(words))
    launch = {key: given.pop(key) for key in LAUNCH_FLAGS if key in given}
    recipe = problems.attempt(lambda: find_recipe(launch["--config"])) if "--config" in launch else None
    values = {key: value for key, value in (recipe or {}).items() if key not in ("about", "method")}
    method = launch.get("--method") or str((recipe or {}).get("method", DEFAULT_METHOD))
    typed: dict[str, Any] = {key.removeprefix("--").replace("-", "_"): value for key, value in given.items()}
    typed |= _density(launch, typed, problems)
    _check_seeds(launch, typed, problems)
    problems.attempt(lambda: minutes_of(launch))
    if "weights" in typed:
        typed["weights"] = find_weights(typed["weights"], launch.get("--runs", "runs"))
    from_file = values.keys() - typed.keys()
    values |= typed
    data = str(values.pop("data", Config.model_fields["data"].default))
    model = str(values.pop("model", default_model(method)))
    # A name that is typed may be imported; one that only a recipe names may not.
    leaves = leave_here(*(typed.get(key) for key in FLAGS))
    origin = f"the recipe {launch.get('--config')}, which is a file that anyone may have written"
    rest: dict[str, Any] = {
        "given": typed,
        "from_file": from_file,
        "launch": launch,
        "leaves": leaves,
        "origin": origin,
    }
    request = problems.attempt(lambda: check_request(method, model, data, values, **rest))
    problems.raise_if_any()
    assert request is not None, "a request that cannot be made has problems"
    problems.add(*_controls_problems(request))
    problems.raise_if_any()
    return request


def check_request(
    method: str,
    model: str | Callable[..., Any],
    data: Any,
    flags: Mapping[str, Any],
    *,
    model_name: str | None = None,
    given: Iterable[str] | None = None,
    from_file: Iterable[str] = (),
    launch: Mapping[str, str] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    leaves: Leaves | None = None,
    origin: str = "",
) -> Request:
    """Check what was asked for: once for each run, in whatever way it was asked for and wherever it is carried out.

    Args:
        method: the name of the method.
        model: a name, or a callable that `model_name` describes.
        data: a name, or arrays.
        flags: values by field name, as text or as what they are.
        model_name: what the configuration says of a callable.
        given: the flags that were asked for, all of `flags` where it is None.
        from_file: the flags whose values come from a file, where text is no number.
        launch: what is no part of the configuration, by flag.
        functions: the loss and the metric that are callables, which `flags` describes.
        leaves: which of the names may be imported; None where all of them come from who asks.
        origin: who names the others (see `Config.origin`).

    Raises:
        RequestError: every unknown name, unknown flag, wrong value and impossible combination.
    """
    problems = Problems()
    chosen = problems.attempt(lambda: find_kind(method))
    problems.add(*name_problems(model, data))
    config_class = Config if chosen is None else chosen.Config
    strangers = [key for key in flags if key not in public_fields(config_class)]
    problems.add(*(problem for key in strangers if (problem := _stranger(key, flags[key], chosen))))
    values = {key: value for key, value in flags.items() if key not in strangers}
    asked = frozenset(values if given is None else given)
    values |= {"method": method, "model": model_name or model, "data": data if isinstance(data, str) else "arrays"}
    own = not isinstance(model, str) or is_factory(model)
    if (own and chosen is not None and chosen.traits.trains_weights) or flags.get("weights"):
        values.setdefault("init", "keep")
    config = problems.attempt(lambda: make_config(config_class, values, asked if chosen else (), from_file))
    problems.raise_if_any()
    assert chosen is not None and config is not None, "a configuration that cannot be made has problems"
    if leaves is None:
        leaves = leave_here(model, data, flags.get("loss"), flags.get("metric"))
    callables = {} if isinstance(model, str) else {config.model: model}
    callables |= {str(getattr(config, name)): function for name, function in (functions or {}).items()}
    for name, function in callables.items():
        leaves = {**leaves, **leave_of(function, name)}
    return Request(chosen, config.allowing(leaves, origin), model, data, asked, launch or {}, functions or {})


def default_model(method: str) -> str:
    """The network of a method where none is named: its own, as one with batch norm, or that of all of them."""
    chosen = Problems().attempt(lambda: find_kind(method))
    return str((chosen.Config if chosen else Config).model_fields["model"].default)


def request_of(
    config: Config,
    model: str | Callable[..., Any] | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
) -> Request:
    """The request of a configuration that has been checked: one that was read from a run, or came with a sweep.

    The others stand in for what it names: what a run was started with, or names that are typed, which may be imported.
    """
    given = {key: value for key, value in (("loss", loss), ("metric", metric)) if value is not None}
    objective, functions = describe_functions(given)
    leaves = leave_here(model, data, loss, metric)
    for name, function in functions.items():
        leaves |= leave_of(function, objective[name])
    config = config.model_copy(update=objective).allowing(leaves)
    return Request(
        find_kind(config.method),
        config,
        config.model if model is None else model,
        config.data if data is None else data,
        functions=functions,
    )


def describe_functions(flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Callable[..., Any]]]:
    """The flags with the names of the loss and the metric where these are callables, and the callables."""
    functions = {name: flags[name] for name in ("loss", "metric") if callable(flags.get(name))}
    return {**flags, **{name: describe_function(each) for name, each in functions.items()}}, functions


def find_weights(given: str, runs: str | os.PathLike[str]) -> str:
    """What `--weights` says, or the path of the run that it names under `runs`, where it is no path itself."""
    named = str(Path(runs) / given)
    if "{seed}" not in given:
        return named if not Path(given).exists() and Path(named, CONFIG).exists() else given
    # A run of some seed says whose names these are; whether each seed has one is seen when its weights are read.
    some = [glob.escape(place).replace("{seed}", "*") for place in (given, f"{named}/{CONFIG}")]
    return named if not glob.glob(some[0]) and glob.glob(some[1]) else given


def name_problems(model: Any, data: Any) -> list[str]:
    """What is wrong with the names of a model and of data."""
    problems = []
    # Names that code has to be imported for are looked up later: torchvision's networks, functions of the user's own.
    if isinstance(model, str) and ":" not in model and model not in model_names():
        elsewhere = weights.architectures.name_elsewhere(model)
        hint = f"; did you mean '{elsewhere}'?" if elsewhere else ""
        problems.append(unknown("model", model, model_names(), hint=hint))
    if isinstance(data, str) and data.startswith(ARRAYS):
        problems.append(f"the data were arrays ({data}), which only Python can give again, as data=(x, y)")
    elif isinstance(data, str) and ":" not in data and without_version(data) not in source_names():
        problems.append(unknown("data set", data, source_names()))
    return problems


def shape_of(config: Config) -> str:
    """The unit that a search keeps or drops as one: `weight`, `filter`, `2:4`, ..."""
    return str(getattr(config, "granularity", "weight"))


def control_problems(config: Config, kinds: Iterable[str] = ()) -> list[str]:
    """Why controls of the tickets of this configuration cannot be made, or would differ in more than one thing.

    Empty if all can be, as far as the configuration tells.
    """
    problems, kinds = [], list(kinds)
    shape = shape_of(config)
    moving = [kind for kind in kinds if kind in MOVING]
    if shape != "weight" and moving:
        problems.append(
            f"keeps units of {shape}: {', '.join(moving)} would move single weights, and so differ in more than their "
            "positions; expected reinit or small-dense"
        )
    if getattr(config, "rewind_optimizer", "fresh") == "restore":
        problems.append("starts each level with the optimizer's restored moments, which no control has")
    if find_kind(config.method).traits.changes_masks:
        problems.append("prunes while it trains: no control can be trained as its ticket was")
    return problems + _kept_problems(config, kinds)


def _kept_problems(config: Config, kinds: Sequence[str]) -> list[str]:
    """The controls that need to know how the weights were drawn, where none were: `--init keep`.

    A ticket that is trained again is of weights that its own search drew, or not: only its file tells.
    """
    if config.init != "keep" or config.method == "train":
        return []
    kept = "--init keep, as with --weights" if config.weights else "--init keep"
    other = "without --weights" if config.weights else "with another --init"
    frozen = not find_kind(config.method).traits.trains_weights
    fresh = [kind for kind in kinds if kind in DRAWN or (frozen and kind in EVALUATED)]
    # What it is rewound to is kept whole; from the start only what the mask keeps.
    moving = [kind for kind in kinds if kind in MOVING and is_zero(getattr(config, "rewind", "0"))]
    problems = []
    if fresh:
        problems.append(
            f"starts from weights that no seed has drawn ({kept}), so that how fresh ones are drawn is not known: "
            f"{', '.join(fresh)} cannot be made; a search {other} has this control"
        )
    if moving and not frozen:
        problems.append(
            f"has not kept the weights under the dropped ones, which no seed has drawn ({kept}): {', '.join(moving)} "
            f"cannot be made; a search {other}, or with --rewind to a later step, has this control"
        )
    return problems


def word_after(name: str, words: Sequence[str]) -> str | None:
    """The value of a flag in a list of words that nobody has parsed yet, None where it has none."""
    for index, word in enumerate(words):
        given, equals, value = word.partition("=")
        if given == name and (equals or index + 1 < len(words)):
            return value if equals else words[index + 1]
    return None


def asked_method(words: Sequence[str]) -> str:
    """The name of the method that is asked for: in the words, in the recipe that they name, or the usual one."""
    # What is wrong with the recipe is told by who reads it for good.
    told_later, recipe = Problems(), word_after("--config", words)
    found = told_later.attempt(lambda: find_recipe(recipe)) if recipe else None
    return word_after("--method", words) or str((found or {}).get("method", DEFAULT_METHOD))


def read_flags(words: Sequence[str], problems: Problems, method: str) -> dict[str, str]:
    """The flags in a list of words, with their values as text. What is wrong is added to `problems`.

    Which flags take no value the method says that is asked for, and of those that it has not the others of this
    package: these are imported only where such a flag is given.
    """
    switches = {key for key, (placeholder, _) in LAUNCH_FLAGS.items() if placeholder is None}
    chosen = Problems().attempt(lambda: find_kind(method))
    booleans = _Switches(chosen)
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        negated = "--" + name.removeprefix("--no-")
        if not name.startswith("--"):
            problems.add(f"'{word}' is not a flag; flags start with --")
            continue
        if name in switches and equals:
            problems.add(f"{name} takes no value")
        elif name in switches or (name in booleans and not equals):
            value = "true"
        elif name.startswith("--no-") and negated in booleans and not equals:
            name, value = negated, "false"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                problems.add(f"{name} needs a value, as {name} {_example(name)}")
                continue
            value = rest.pop(0)
        if name in given and given[name] != value:
            problems.add(f"{name} is given twice: {given[name]} and {value}")
        given[name] = value
    return given


class _Switches:
    """The flags that take no value."""

    def __init__(self, chosen: Method | None) -> None:
        self._known = {flag(name): is_switch(entry) for name, entry in _fields(chosen)}
        self._others: set[str] | None = None

    def __contains__(self, name: str) -> bool:
        if name in self._known:
            return self._known[name]
        if name in LAUNCH_FLAGS:
            return False
        if self._others is None:
            kinds = [find_kind(each) for each in (*own_methods(), "train")]
            self._others = {flag(field) for kind in kinds for field, entry in _fields(kind) if is_switch(entry)}
        return name in self._others


def _fields(method: Method | None) -> Iterable[tuple[str, FieldInfo]]:
    return public_fields(Config if method is None else method.Config).items()


def _example(name: str) -> str:
    return LAUNCH_FLAGS.get(name, ("VALUE", ""))[0] or "VALUE"


def _density(launch: Mapping[str, str], typed: Mapping[str, str], problems: Problems) -> dict[str, float]:
    """The density that --sparsity asks for, if it is given."""
    if "--sparsity" not in launch:
        return {}
    if "density" in typed:
        problems.add(f"--density {typed['density']} and --sparsity {launch['--sparsity']}: give one of them")
        return {}
    try:
        sparsity = float(launch["--sparsity"])
    except ValueError:
        sparsity = -1.0
    if not 0 <= sparsity < 1:
        meant = meant_density("sparsity", launch["--sparsity"])
        hint = f"; did you mean --sparsity {1 - meant:g}, which is --density {meant:g}?" if meant else ""
        problems.add(f"--sparsity {launch['--sparsity']}: expected a number in [0, 1), the fraction dropped{hint}")
        return {}
    # 1 - 0.9 is 0.09999999999999998 in floating point; nobody means that.
    return {"density": round(1.0 - sparsity, 12)}


def _check_seeds(launch: Mapping[str, str], typed: Mapping[str, str], problems: Problems) -> None:
    if "--seeds" in launch:
        problems.attempt(lambda: parse_seeds(launch["--seeds"]))
        if "seed" in typed:
            problems.add(f"--seed {typed['seed']} and --seeds {launch['--seeds']}: give one of them")
        if "--name" in launch:
            problems.add(f"--name {launch['--name']} names one run: leave it out with --seeds")
        if "--again" in launch:
            problems.add("--again is about one run: leave it out with --seeds, and give another --runs")
    if "--jobs" in launch and "--seeds" not in launch:
        problems.add(f"--jobs {launch['--jobs']} goes with --seeds: a single search has no other to run beside it")
    if re.fullmatch(r"0*[1-9][0-9]{0,5}", launch.get("--jobs", "1")) is None:
        problems.add(f"--jobs {launch['--jobs']}: expected a number of runs, 1 or more")


def minutes_of(launch: Mapping[str, str]) -> float | None:
    """After how many minutes to stop; None where that is not given.

    Raises:
        RequestError: it is no such number.
    """
    if (given := launch.get("--max-minutes")) is None:
        return None
    if re.fullmatch(r"[0-9]{1,7}(\.[0-9]*)?", given) is None:
        raise RequestError(f"--max-minutes {given}: expected a number of minutes, 0 or more")
    return float(given)


def words_of(launch: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The words between the commas of a flag that is no part of the configuration; none where it is not given."""
    return tuple(word for word in launch.get(name, "").split(",") if word)


def _controls_problems(request: Request) -> list[str]:
    """What is wrong with the controls that are to follow each search of `--seeds`."""
    launch, kinds = request.launch, words_of(request.launch, "--controls")
    if "--controls" not in launch:
        return ["--control-levels goes with --controls"] if "--control-levels" in launch else []
    if "--seeds" not in launch:
        return ["--controls goes with --seeds: after a single search it is `ticket controls RUN`"]
    if request.method.traits.dense:
        return [f"--controls: a run of {request.method.name} has no mask to control"]
    found = [] if kinds else ["--controls: expected kinds, as reinit,shuffle,random"]
    found += [unknown("control", kind, TRAINED) for kind in kinds if kind not in TRAINED]
    found += [f"--controls: {request.method.name} {why}" for why in control_problems(request.config, kinds)]
    levels = words_of(launch, "--control-levels")
    if "--control-levels" in launch and not (levels and all(re.fullmatch("[1-9][0-9]{0,5}", word) for word in levels)):
        found.append(f"--control-levels {launch['--control-levels']}: expected numbers from 1 on, as 1,3")
    return found


def parse_seeds(given: Any, where: str = "--seeds") -> tuple[int, ...]:
    """Seeds from text as `0-4` or `0-2,7`, from a number, or from a list of these.

    Raises:
        RequestError: anything else, or a seed that is given twice.
    """
    words = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    expected = f"{where} {given}: expected seeds, as 0-4 or 0-2,7"
    seeds: list[int] = []
    for word in words:
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", str(word).strip())
        if match is None:
            raise RequestError(expected)
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + _MOST_SEEDS:
            raise RequestError(f"{expected}, from low to high and at most {_MOST_SEEDS:,}")
        seeds += range(first, last + 1)
    if not seeds:
        raise RequestError(expected)
    if twice := [str(seed) for seed, count in Counter(seeds).items() if count > 1]:
        raise RequestError(f"{where} {given}: {', '.join(twice)} is given twice")
    return tuple(seeds)


def _stranger(key: str, value: Any, chosen: Method | None) -> str | None:
    """What is wrong with a key that is no flag of the method; None where it may be one of a method that is unknown."""
    others = [method.name for method in usable_methods()[0] if key in method.Config.model_fields]
    if key == "method":
        return "method is given by --method, not as a flag"
    if key != "sparsity" and flag(key) in LAUNCH_FLAGS:
        return f"{flag(key)} is a flag of ticket search"
    if others:
        return f"{flag(key)} is a flag of {', '.join(others)}, not of {chosen.name}" if chosen else None
    known = [*map(flag, public_fields(chosen.Config if chosen else Config)), *LAUNCH_FLAGS]
    return unknown_flag(flag(key), known, value)
