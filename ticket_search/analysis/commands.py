"""The command that carries out a recipe once more: whatever is suggested or printed to be typed is written here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..contract.flags import flag, public_fields
from ..contract.leave import can_be_typed, code_in
from ..methods import find_method, method_names
from ..running.request import ARRAYS

# What a run was given that is no part of its recipe, and without which its data are not found again.
PLACE = ("data_dir", "workers")
# What each machine settles for itself where nobody says it.
_OF_THE_MACHINE = ("channels_last", "device", "threads")


def search_command(
    recipe: Mapping[str, Any], seeds: Sequence[int], *, runs: str | os.PathLike[str] = "", told: Collection[str] = ()
) -> str:
    """The command that carries out a recipe with some seeds; empty for a program of somebody else's, or no method.

        search_command({"method": "imp", "model": "lenet-300-100", "density": 0.2}, [0, 1, 2])

    Flags that have their default are left out, and those that a method does not have. Of arrays, and of functions that
    cannot be imported, it is the call in Python.

    Args:
        recipe: values by field name, with `data_dir` and `workers` where the runs have them.
        seeds: the seeds to search with.
        runs: the folder that the new runs belong in, if not ./runs.
        told: names of flags that are told even where they have their default.
    """
    method = str(recipe.get("method", ""))
    if method not in method_names() or "model" not in recipe:
        return ""
    values = _values(method, recipe, told)
    if str(recipe.get("data", "")).startswith(ARRAYS) or not all(map(can_be_typed, code_in(recipe).values())):
        return _in_python(method, values, seeds, code_in(recipe), _elsewhere(runs))
    words = ["ticket", "search", "--method", method]
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else "--no-" + flag(name)[2:])
        else:
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value}"
            words += [flag(name), shlex.quote(text)]
    if place := _elsewhere(runs):
        words += ["--runs", shlex.quote(place)]
    return " ".join([*words, "--seeds", _ranges(seeds)])


def _values(method: str, recipe: Mapping[str, Any], told: Collection[str]) -> dict[str, Any]:
    """The flags of a method that a command has to say, without those of the seeds."""
    found = {}
    for name, entry in public_fields(find_method(method).Config).items():
        value, default = recipe.get(name), entry.get_default()
        # Of a list of levels the last is the density.
        implied = name == "density" and (find_method(method).traits.dense or recipe.get("levels"))
        if name in (*_OF_THE_MACHINE, "seed") or implied or value is None:
            continue
        if name in told or value not in (default, list(default) if isinstance(default, tuple) else default):
            found[name] = value
    return found


def _in_python(method: str, values: Mapping[str, Any], seeds: Sequence[int], code: Mapping[str, str], runs: str) -> str:
    """The call that does it, in which `...` stands for what only Python has."""
    words = [repr(method), *(f"{name}=..." for name in dict.fromkeys(("model", "data", *code)))]
    words += [f"{name}={value!r}" for name, value in values.items() if name not in ("model", "data", *code)]
    words += [f"runs={runs!r}"] if runs else []
    if len(seeds) == 1:
        return f"ticket_search.search({', '.join([*words, f'seed={seeds[0]}'])})"
    return f"[ticket_search.search({', '.join([*words, 'seed=seed'])}) for seed in {tuple(sorted(set(seeds)))}]"


def _elsewhere(runs: str | os.PathLike[str]) -> str:
    """A folder of runs as it is typed here; empty where it is the usual one, or none is named."""
    if not os.fspath(runs) or Path(runs).resolve() == Path("runs").resolve():
        return ""
    place = Path(runs).resolve()
    return str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)


def _ranges(seeds: Sequence[int]) -> str:
    """Seeds as `--seeds` takes them: 0-2,5."""
    found: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if found and seed == found[-1][1] + 1:
            found[-1][1] = seed
        else:
            found.append([seed, seed])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in found)
