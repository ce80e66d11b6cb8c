"""The mark of a run: that this user started it, with the code that its configuration names.

It is a small file in the run's folder: the names, the folders that they come from, and an HMAC-SHA-256 of both by the
user's key. A folder that is copied, moved or renamed keeps its mark. A name that was edited, in the mark or in the
configuration, has none, and neither has a run of another user.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from supermask import tickets

from ..contract.leave import Leave, can_be_typed, code_in
from .key import KeyUnusable, make_key, read_key

MARK = "origin.json"
_PURPOSE = b"supermask: the origin of a run\n"


def write_mark(folder: Path, values: Mapping[str, Any], leaves: Mapping[str, Leave], content: str = "") -> str:
    """Mark a run, if its configuration names code that can be remembered.

    Args:
        folder: of the run.
        values: its configuration, by flag.
        leaves: what may be imported for it. All of it has been imported.
        content: what identifies the samples of a data set of one's own.

    Returns:
        Why it cannot be marked, or an empty text.
    """
    names = code_in(values)
    known = {key: leave for key, name in names.items() if name in leaves and (leave := locate(name)) is not None}
    if not known:
        return ""
    if "data" in known:
        known["data"] = replace(known["data"], content=content)
    marked = {key: {"name": names[key], **asdict(leave)} for key, leave in known.items()}
    try:
        code = _code(make_key(), marked)
    except KeyUnusable as error:
        return f"this run will not remember its own code, which every command will have to be told: {error}"
    tickets.file.write_atomically(
        folder / MARK, (json.dumps({"names": marked, "hmac": code}, indent=2) + "\n").encode()
    )
    return ""


def read_mark(folder: Path, values: Mapping[str, Any]) -> tuple[dict[str, Leave], str]:
    """What a run gives leave to import: only code that its configuration names and its mark vouches for.

    Args:
        folder: of the run.
        values: its configuration, by flag.

    Returns:
        Leaves by name, and a reason, as `has no mark of a run that was made here`.
    """
    names = code_in(values)
    path = folder / MARK
    if not names:
        return {}, ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        marked = {str(key): {field: str(given[field]) for field in _FIELDS} for key, given in found["names"].items()}
        right = hmac.compare_digest(_code(read_key(), marked), str(found["hmac"]))
    except FileNotFoundError:
        return {}, "has no mark of a run that was made here"
    except KeyUnusable as error:
        return {}, f"has a mark that cannot be checked ({error})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, f"has a mark that cannot be read ({MARK})"
    if not right:
        return {}, f"has a mark that was edited, or made by another user ({MARK})"
    leaves = {
        given["name"]: Leave(**{field: value for field, value in given.items() if field != "name"})
        for key, given in marked.items()
        if names.get(key) == given["name"]
    }
    return leaves, "has a mark of other names or of none" if len(leaves) < len(set(names.values())) else ""


_FIELDS = ("name", "folder", "file", "digest", "content")


def _code(key: bytes, marked: Mapping[str, Mapping[str, str]]) -> str:
    text = json.dumps(marked, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, _PURPOSE + text.encode(), hashlib.sha256).hexdigest()


def locate(name: str) -> Leave | None:
    """Where a function comes from whose module is imported; None of one that another process cannot import."""
    if not can_be_typed(name):
        return None
    dotted = name.partition(":")[0]
    module = sys.modules.get(dotted)
    file = getattr(module, "__file__", None)
    if module is None or (file is None and not hasattr(module, "__path__")):
        # Compiled into the interpreter, as builtins is.
        return None if module is None else Leave("")
    if file is None:
        return None  # a folder without __init__.py: no file defines it
    path = Path(file).resolve()
    parents = dotted.count(".") + (path.stem == "__init__")
    folder = path.parents[parents]
    if str(folder) in _installed():
        return Leave("")
    return Leave(str(folder), str(path), digest_of(path))


def leave_of(function: Any, name: str) -> dict[str, Leave]:
    """Leave for a function that was passed in Python, where its name would find the same function again."""
    found: Any = sys.modules.get(name.partition(":")[0])
    for part in name.partition(":")[2].split("."):
        found = getattr(found, part, None)
    leave = locate(name) if found is function else None
    return {} if leave is None else {name: leave}


def _installed() -> set[str]:
    return {os.path.realpath(path) for path in sysconfig.get_paths().values()} | site_folders()


def site_folders() -> set[str]:
    """The folders of installed packages that are looked in, those of another environment below this one too."""
    named = ("site-packages", "dist-packages")
    return {os.path.realpath(path) for path in sys.path if os.path.basename(os.path.normpath(path)) in named}


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
