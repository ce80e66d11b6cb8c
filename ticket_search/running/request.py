"""A search as asked for, in words or in Python, checked before anything heavy is imported or anything is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..contract.errors import RequestError, nearest_hint, unknown
from ..contract.flags import Config, find_recipe, flag, is_switch, make_config, public_fields
from ..contract.method import Method
from ..data.sources import source_names
from ..methods import declared_methods, find_method, own_methods, usable_methods
from ..models.names import is_factory, model_names
from ..runs.names import MOVING
from .read_config import find_kind

DEFAULT_METHOD = "edge-popup"
_MOST_SEEDS = 10_000

# What is not part of a run's configuration: `flag: (placeholder or None where it takes no value, help)`.
LAUNCH_FLAGS: dict[str, tuple[str | None, str]] = {
    "--method": ("NAME", f"the search method; {DEFAULT_METHOD} if not given"),
    "--config": ("NAME|FILE", "a recipe of this package or a .toml file; flags beside it win"),
    "--sparsity": ("S", "the same as --density 1-S"),
    "--runs": ("DIR", "the folder of all runs; ./runs if not given"),
    "--name": ("NAME", "the run's name; METHOD-MODEL-DATA-dDENSITY-sSEED if not given"),
    "--seeds": ("0-4", "a run for each of these seeds, as 0-4 or 0-2,7, of 1 thread each if --threads is not given"),
    "--jobs": ("N", "how many of the runs of --seeds go on at once; 1 if not given"),
    "--dry-run": (None, "say what would be done and how long it would take; write nothing"),
    "--json": (None, "print the summary (or the plan) as one JSON object"),
    "--help": (None, "show the flags, with --method those of that method too"),
}


@dataclass(frozen=True)
class Request:
    """What was asked for: a method, values of its flags, how to launch it, and which flags were typed.

    A recipe's value may lose its effect by a flag beside it (its momentum by --optimizer adam); a typed flag may not.
    """

    method: str
    values: dict[str, Any]
    launch: dict[str, str] = field(default_factory=dict)
    given: frozenset[str] = frozenset()

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.values.get("model", Config.model_fields["model"].default))

    @property
    def data(self) -> str:
        """The data set's name."""
        return str(self.values.get("data", Config.model_fields["data"].default))

    def asks(self, launch_flag: str) -> bool:
        """Whether a flag without a value was given."""
        return launch_flag in self.launch


def read_request(words: Sequence[str]) -> Request:
    """Parse and check the words after `ticket search`.

    Raises:
        RequestError: every problem of the request at once.
    """
    problems: list[str] = []
    given = read_flags(words, problems, _foreign_method_in(words))
    launch = {key: given.pop(key) for key in LAUNCH_FLAGS if key in given}
    recipe: dict[str, Any] = {}
    if "--config" in launch:
        try:
            recipe = find_recipe(launch["--config"])
        except RequestError as error:
            problems += error.problems
    method = launch.get("--method") or str(recipe.pop("method", DEFAULT_METHOD))
    recipe.pop("method", None)
    typed = {key.removeprefix("--").replace("-", "_"): value for key, value in given.items()}
    density = _density(launch, typed, problems)
    problems += _seed_problems(launch, typed)
    values = {**_without_notes(recipe), **typed, **density}
    request = Request(method, values, launch, frozenset({**typed, **density}))
    from_file = set(recipe) - set(typed) - set(density)
    try:
        validate(method, request.model, request.data, values, given=request.given, typed=from_file)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    return request


def validate(
    method: str,
    model: str | Callable[..., Any],
    data: Any,
    flags: Mapping[str, Any],
    model_name: str | None = None,
    given: Iterable[str] | None = None,
    typed: Iterable[str] = (),
) -> tuple[Method, Config]:
    """The method and its checked configuration.

    Args:
        method: its name.
        model: a name, or a callable that `model_name` describes.
        data: a name, or arrays.
        flags: values by field name, text or typed.
        model_name: what the configuration says of a callable.
        given: the flags that were asked for, all of `flags` where None.
        typed: the flags whose values come from a file, where text is no number.

    Raises:
        RequestError: every unknown name, unknown flag, wrong value and impossible combination.
    """
    problems = []
    chosen: Method | None = None
    config: Config | None = None
    try:
        chosen = find_kind(method)
    except RequestError as error:
        problems += error.problems
    problems += name_problems(model, data)
    config_class = Config if chosen is None else chosen.Config
    strangers = [key for key in flags if key not in public_fields(config_class)]
    problems += [problem for key in strangers if (problem := _stranger(key, chosen))]
    values = {key: value for key, value in flags.items() if key not in strangers}
    asked = values.keys() if given is None else given
    values |= {"method": method, "model": model_name or model, "data": data if isinstance(data, str) else "arrays"}
    own = not isinstance(model, str) or is_factory(model)
    if (own and chosen is not None and chosen.traits.trains_weights) or flags.get("weights"):
        values.setdefault("init", "keep")
    try:
        config = make_config(config_class, values, set(asked) if chosen else (), typed)
    except RequestError as error:
        problems += error.problems
    if problems or chosen is None or config is None:
        raise RequestError(problems)
    return chosen, config


def name_problems(model: Any, data: Any) -> list[str]:
    """What is wrong with the names of model and data."""
    problems = []
    # What code has to be imported for is looked up later: torchvision's networks, functions of the user's own.
    if isinstance(model, str) and ":" not in model and model not in model_names():
        problems.append(unknown("model", model, model_names()))
    if isinstance(data, str) and ":" not in data and data not in source_names():
        problems.append(unknown("data set", data, source_names()))
    return problems


def shape_of(config: Config) -> str:
    """What a search keeps or drops as one: `weight`, `filter`, `2:4`, ..."""
    return str(getattr(config, "granularity", "weight"))


def control_problems(config: Config, kinds: Iterable[str] = ()) -> list[str]:
    """Why a control would not differ from the tickets of this configuration in one thing only; empty where all do."""
    problems = []
    shape = shape_of(config)
    moving = [kind for kind in kinds if kind in MOVING]
    if shape != "weight" and moving:
        problems.append(
            f"keeps units of {shape}: {', '.join(moving)} would move single weights, and differ in more than position; "
            "expected reinit or small-dense"
        )
    if getattr(config, "rewind_optimizer", "fresh") == "restore":
        problems.append("starts each level with restored moments, which no control can")
    if config.method == "gradual":
        problems.append("prunes while it trains: no control is trained as its ticket is")
    return problems


def _foreign_method_in(words: Sequence[str]) -> list[str]:
    """The method that is asked for, where it is one of another package: only that one is imported."""
    if not declared_methods():
        return []
    launch = read_flags(words, [])
    try:
        recipe = find_recipe(launch["--config"]) if "--config" in launch else {}
        asked = find_method(launch.get("--method") or str(recipe.get("method", DEFAULT_METHOD)))
    except RequestError:
        return []  # what is wrong with the method or the recipe is said by who reads them
    return [asked.name] if asked.name in declared_methods() else []


def read_flags(words: Sequence[str], problems: list[str], foreign: Iterable[str] = ()) -> dict[str, str]:
    """The flags in a list of words with their values as text; what is wrong is added to `problems`.

    Flags without a value are those of the methods of this package, and of `foreign` ones.
    """
    switches = {key for key, (placeholder, _) in LAUNCH_FLAGS.items() if placeholder is None}
    booleans = {
        flag(name)
        for method in (*own_methods(), "train", *foreign)
        for name, entry in public_fields(find_kind(method).Config).items()
        if is_switch(entry)
    }
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        negated = "--" + name.removeprefix("--no-")
        if not name.startswith("--"):
            problems.append(f"'{word}' is not a flag; flags start with --")
            continue
        if name in switches and equals:
            problems.append(f"{name} takes no value")
        elif name in switches or (name in booleans and not equals):
            value = "true"
        elif name.startswith("--no-") and negated in booleans and not equals:
            name, value = negated, "false"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(f"{name} needs a value, as {name} {_example(name)}")
                continue
            value = rest.pop(0)
        if name in given and given[name] != value:
            problems.append(f"{name} is given twice: {given[name]} and {value}")
        given[name] = value
    return given


def _example(name: str) -> str:
    return LAUNCH_FLAGS.get(name, ("VALUE", ""))[0] or "VALUE"


def _density(launch: Mapping[str, str], typed: Mapping[str, str], problems: list[str]) -> dict[str, float]:
    if "--sparsity" not in launch:
        return {}
    if "density" in typed:
        problems.append(f"--density {typed['density']} and --sparsity {launch['--sparsity']}: give one of them")
        return {}
    try:
        sparsity = float(launch["--sparsity"])
    except ValueError:
        sparsity = -1.0
    if not 0 <= sparsity < 1:
        problems.append(f"--sparsity {launch['--sparsity']}: expected a number in [0, 1), the fraction dropped")
        return {}
    # 1 - 0.9 is 0.09999999999999998 in floating point; nobody means that.
    return {"density": round(1.0 - sparsity, 12)}


def _seed_problems(launch: Mapping[str, str], typed: Mapping[str, str]) -> list[str]:
    problems = []
    if "--seeds" in launch:
        try:
            parse_seeds(launch["--seeds"])
        except RequestError as error:
            problems += error.problems
        if "seed" in typed:
            problems.append(f"--seed {typed['seed']} and --seeds {launch['--seeds']}: give one of them")
        if "--name" in launch:
            problems.append(f"--name {launch['--name']} names one run: leave it out with --seeds")
    if "--jobs" in launch and "--seeds" not in launch:
        problems.append(f"--jobs {launch['--jobs']} goes with --seeds: one run has nothing beside it")
    if re.fullmatch(r"0*[1-9][0-9]{0,5}", launch.get("--jobs", "1")) is None:
        problems.append(f"--jobs {launch['--jobs']}: expected a number of runs, 1 or more")
    return problems


def parse_seeds(given: Any, where: str = "--seeds") -> tuple[int, ...]:
    """Seeds from text as `0-4` or `0-2,7`, from a number, or from a list of these.

    Raises:
        RequestError: anything else, or a seed that is there twice.
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
        raise RequestError(f"{where} {given}: {', '.join(twice)} is there twice")
    return tuple(seeds)


def _without_notes(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "about"}


def _stranger(key: str, chosen: Method | None) -> str | None:
    others = [method.name for method in usable_methods()[0] if key in method.Config.model_fields]
    if key == "method":
        return "method is given by --method, not as a flag"
    if key == "sparsity":
        return "sparsity is a word of the command line only: write density, the fraction kept"
    if flag(key) in LAUNCH_FLAGS:
        return f"{flag(key)} is a flag of ticket search"
    if others:
        return f"{flag(key)} is a flag of {', '.join(others)}, not of {chosen.name}" if chosen else None
    known = [*map(flag, public_fields(chosen.Config if chosen else Config)), *LAUNCH_FLAGS]
    return f"unknown flag {flag(key)}{nearest_hint(flag(key), known)}"
