"""The recipes and the studies that ship with the package, and those of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import RequestError, unknown
from .text_files import read_toml


def config_folders() -> list[Path]:
    """The folders of recipes: in the installed package, or beside it in a source checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def recipes() -> dict[str, Path]:
    """The recipes that ship with the package: `{name: file}`."""
    return {path.stem: path for folder in config_folders() for path in sorted(folder.glob("*.toml"))}


def studies() -> dict[str, Path]:
    """The studies that ship with the package: `{name: file}`."""
    return {path.stem: path for folder in config_folders() for path in sorted(folder.glob("studies/*.toml"))}


def find_study(name: str) -> Path:
    """The file of a study by its name or its path.

    Raises:
        RequestError: the name is that of neither a study nor a file.
    """
    known = studies()
    if name in known:
        return known[name]
    if name.endswith(".toml") or Path(name).is_file():
        return Path(name)
    raise RequestError(unknown("study", name, known, "studies") + ", or the path of a .toml file")


def find_recipe(name: str) -> dict[str, Any]:
    """The values of a recipe by its name or its file.

    Raises:
        RequestError: the name is that of neither a recipe nor a file.
    """
    known = recipes()
    if name in known:
        return read_toml(known[name])
    if name.endswith(".toml") or Path(name).is_file():
        return read_toml(name)
    raise RequestError(unknown("recipe", name, known) + ", or the path of a .toml file")
