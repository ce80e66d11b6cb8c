"""The records in a run's folder, and how a damaged one is noticed: each has a checksum in `checksums.json`.

Tickets and `state.pt` have theirs in themselves. A folder of version 0.1 has no checksums: its records are read as they
are.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from supermask import __version__, tickets
from supermask.tickets.strict_json import parse_json

from ..contract.errors import RequestError
from ..contract.text_files import read_json, read_toml
from .forms import check_form
from .names import CHECKSUMS, CONFIG
from .versions import too_new

# What names files of the run that a training belongs to, in whose folder its own lies.
_PLACES = ("ticket", "whole")
_STATE = b"supermask state 1 sha256 "
_OTHER_STATE = re.compile(rb"supermask state ([0-9]{1,6}) ")
_ZIP = b"PK\x03\x04"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as a JSON file, whole or not at all."""
    tickets.file.write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_record(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write an object as a TOML or a JSON file of a run's folder, whole or not at all, with its checksum."""
    text = tomli_w.dumps(value) if name.endswith(".toml") else json.dumps(value, indent=2) + "\n"
    data = text.encode()
    # A process that is killed between the two writes leaves a file that fits one of the two checksums.
    older = _checksums(folder).get(name, [])[-1:]
    add_checksum(folder, name, *older, _digest(data))
    tickets.file.write_atomically(folder / name, data)


def add_checksum(folder: Path, name: str, *digests: str) -> None:
    """Note what a file of a run's folder may have as its SHA-256."""
    found = {**_checksums(folder), name: list(dict.fromkeys(digests))}
    tickets.file.write_atomically(folder / CHECKSUMS, (json.dumps(found, indent=2) + "\n").encode())


def has_record(folder: Path, name: str) -> bool:
    """Whether a run's folder has had such a file, though it may be gone."""
    return name in _checksums(folder)


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The object in a TOML or JSON file of a run's folder.

    Raises:
        RequestError: it cannot be read, does not match its checksum, or is no such record (see `forms`): of a newer
            version perhaps.
    """
    path = folder / name
    if not path.exists() and name in _checksums(folder):
        raise RequestError(f"{path} is missing, of which {CHECKSUMS} knows")
    check_file(path)
    found = read_toml(path) if name.endswith(".toml") else read_json(path)
    try:
        check_form(name, found, str(path))
    except RequestError as error:
        raise RequestError(too_new(folder) or error.problems) from None
    if name == CONFIG:
        found = {**found, **_find_places(folder, found)}
    return found


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of a run, so that the run may be moved together with the one that it belongs to."""
    here = folder.resolve()
    # The run in whose folder this one lies, or this one.
    owner = next((above for above in reversed([here, *here.parents]) if (above / CONFIG).exists()), here)
    inside = {key: config[key] for key in _PLACES if Path(config.get(key) or "/").is_relative_to(owner)}
    relative = {key: os.path.relpath(place, here) for key, place in inside.items()}
    write_record(folder, CONFIG, {**config, **relative})


def _find_places(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The paths in a configuration that are relative to its folder, whole."""
    given = {key: config[key] for key in _PLACES if isinstance(config.get(key), str)}
    here = folder.resolve()
    return {key: os.path.normpath(here / place) for key, place in given.items() if Path(place).parts[:1] == ("..",)}


def check_file(path: Path) -> None:
    """Check a file of a run's folder by its checksum, if it has one.

    Raises:
        RequestError: it cannot be read, or is not as it was written.
    """
    expected = _checksums(path.parent).get(path.name)
    if expected and digest_of_start(path) not in expected:
        raise RequestError(f"{path} is damaged, or was edited: it does not match its checksum in {CHECKSUMS}")


def digest_of_start(path: Path, size: int | None = None) -> str:
    """SHA-256 of a file, or of its first `size` bytes.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _digest(file.read() if size is None else file.read(size))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _checksums(folder: Path) -> dict[str, list[str]]:
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    found = read_json(path)
    if not all(isinstance(value, list) and all(isinstance(one, str) for one in value) for value in found.values()):
        raise RequestError(f"{path} is damaged: expected a list of checksums of each file")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`.

    Raises:
        RequestError: it cannot be read, does not match its checksum, or a line is no row.
    """
    check_file(path)
    try:
        rows = [parse_json(line, finite=False) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged: {error}") from None
    if not all(map(is_row, rows)):
        raise RequestError(f"{path} is damaged: expected a step, a stage and numbers in each line")
    return rows


def is_row(row: Any) -> bool:
    """Whether an object is a row of `metrics.jsonl`: a stage, a step, and numbers."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or not isinstance(row.get("stage"), str):
        return False
    numbers = [value for name, value in row.items() if name != "stage"]
    return all(type(value) is float or (type(value) is int and abs(value) < 2**62) for value in numbers)


def seal(state: bytes) -> bytes:
    """The bytes of a saved state with a line before them that tells their SHA-256."""
    return _STATE + _digest(state).encode() + b"\n" + state


def unseal(path: Path) -> io.BytesIO:
    """The bytes of a saved state, checked whole. One of version 0.1 is a bare zip file, whose members are checked.

    Raises:
        RequestError: a file that cannot be read or is not as it was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    line, _, state = data.partition(b"\n")
    if line.startswith(_STATE):
        if line != _STATE + _digest(state).encode():
            raise RequestError(f"{path} is damaged: it does not match its checksum")
        return _check_archive(path, state)
    if kind := _OTHER_STATE.match(line):
        raise RequestError(
            f"{path} holds a state of kind {kind[1].decode()}, and supermask {__version__} reads kind 1: it was saved "
            "by a later one, or is damaged"
        )
    # A zip file may have anything before it, a line about its checksum that is damaged among others.
    return _check_archive(path, data)


def _check_archive(path: Path, data: bytes) -> io.BytesIO:
    archive = io.BytesIO(data)
    if not data.startswith(_ZIP) or not zipfile.is_zipfile(archive):
        raise RequestError(f"{path} is damaged: it is no saved state")
    try:
        tickets.checkpoint.check_members(archive)
    except ValueError as error:
        raise RequestError(f"{path} is damaged: {error}") from None
    return io.BytesIO(data)
