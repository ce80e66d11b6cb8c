"""Requests that cannot be carried out: every problem at once, and what to type instead."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RequestError(ValueError):
    """The request was wrong. `problems` holds one sentence for each thing wrong with it; nothing has been done."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


class RunError(RuntimeError):
    """The run has failed: what happened, and what to try."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved its state; `path` is its folder."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"stopped; `ticket resume {path}` goes on")


def unknown(kind: str, word: str, choices: Iterable[str]) -> str:
    """`unknown model 'lenet'; did you mean 'lenet-300-100'? The models are ...`."""
    names = sorted(choices)
    hint = nearest_hint(word, names)
    return f"unknown {kind} '{word}'{hint or '.'} The {kind}s are {', '.join(names)}"


def nearest_hint(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `choices`, or nothing where none is near."""
    names = list(choices)
    # What begins with the word is what was meant, however long it is.
    close = sorted((name for name in names if word and name.startswith(word)), key=len)
    close = close or get_close_matches(word, names, n=1, cutoff=0.4)
    return f"; did you mean '{close[0]}'?" if close else ""
