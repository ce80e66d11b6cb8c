"""Other packages, installed into a folder as pip leaves them: their modules, and beside them what they declare."""

from __future__ import annotations

import shutil
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path

OTHER_PACKAGE = Path(__file__).parent / "fixtures" / "other_package"


def install(source: Path, site: Path) -> None:
    """A package's sources, a pyproject.toml beside the modules, installed into `site`."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    shutil.copytree(source, site, ignore=shutil.ignore_patterns("pyproject.toml", "__pycache__"), dirs_exist_ok=True)
    declare(site, project["name"], project["version"], project["entry-points"])


def declare(site: Path, name: str, version: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    """What an installed package says of itself."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in names.items())
        for group, names in groups.items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))


def write(site: Path, **modules: str) -> None:
    """Modules, each in a file."""
    site.mkdir(exist_ok=True)
    for name, code in modules.items():
        (site / f"{name}.py").write_text(textwrap.dedent(code))
