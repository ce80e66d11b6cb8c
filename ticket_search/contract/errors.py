"""Requests that cannot be carried out: every problem is told at once, together with what to type instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any, TypeVar

from supermask.masks.texts import harmless
from supermask.plugins.other_names import DROPPED, KEPT, meant_density

from .other_names import meant
from .stops import STOPPED, Stopped

Value = TypeVar("Value")

# How much alike a word and a name are that may have been meant by it.
_NEAR = 0.55
# A word of more characters is not meant for a name.
_LONGEST = 200
# What pydantic calls a wrong value, in words for people.
_EXPECTED = {
    "a whole number": ("int_parsing", "int_type", "int_from_float"),
    "a number": ("float_parsing", "float_type"),
    "true or false": ("bool_parsing", "bool_type"),
    "text": ("string_type",),
    "a list": ("list_type", "tuple_type"),
    "a table": ("dict_type", "model_type"),
}


# What a network, a loss or a metric of the user's own raises where it does not take what it is given.
RAISED = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, AssertionError, ArithmeticError)


class RequestError(ValueError):
    """The request was wrong and nothing has been done. `problems` holds one line for each thing wrong with it."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        told = [problems] if isinstance(problems, str) else list(problems)
        # What is told may hold a value from a file, whose lines would look like lines of ours.
        self.problems = [" ".join(filter(None, map(str.strip, text.splitlines()))) for text in told]
        super().__init__("; ".join(self.problems))


class Problems:
    """Everything that is wrong with a request, collected so that it can be told at once.

        problems = Problems()
        problems.add("--epochs 0: expected 1 or more")
        data = problems.attempt(lambda: load_data(name, config))     # None, and its problems kept, where it fails
        problems.raise_if_any()

    A sentence that is added twice is told once.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, *sentences: str) -> None:
        """Add sentences, each saying one thing that is wrong."""
        self.found += [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.found]

    def attempt(self, work: Callable[[], Value]) -> Value | None:
        """What `work()` returns, or None where it raises a RequestError, whose problems are added.

        Any other exception is raised as it is.
        """
        try:
            return work()
        except RequestError as error:
            self.add(*error.problems)
            return None

    def raise_if_any(self) -> None:
        """Raise one RequestError that holds all problems, if there are any.

        Raises:
            RequestError: all that was added.
        """
        if self.found:
            raise RequestError(self.found)


def command_line(*words: Any) -> str:
    """What to type, as a shell takes it: `ticket resume 'runs/a run'`."""
    return shlex.join(["ticket", *map(str, words)])


class RunError(RuntimeError):
    """The run has failed. The message says what happened and what to try."""


class Interrupted(Stopped):
    """The run was asked to stop and has saved its state. `path` is its folder, `status` what the process exits with."""

    def __init__(self, path: str, status: int = STOPPED, goes_on: str = "") -> None:
        self.path = path
        told = goes_on or f"`{command_line('resume', path)}` goes on"
        super().__init__(f"stopped; {told}", status)


def describe_expected(item: Any) -> str:
    """`expected a whole number`: what is wrong with a value, from the item of pydantic's error that is about it."""
    for words, kinds in _EXPECTED.items():
        if item["type"] in kinds:
            return f"expected {words}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return message  # a sentence of ours, or of a method's own
    if message.startswith(("greater than", "less than")):
        message = f"a number {message}"
    choices = re.findall("'([^']*)'", message) if item["type"] == "literal_error" else []
    return f"expected {message}{nearest_hint(item['input'], choices) if isinstance(item['input'], str) else ''}"


def unknown(kind: str, word: str, choices: Iterable[str], plural: str = "", hint: str = "") -> str:
    """The sentence about a word that is none of `choices`: the nearest of them, then all.

    As `unknown model 'lenet'; did you mean 'lenet-300-100'? The models are conv2, conv4, ...`. A word of the field has
    the name that it stands for here (see `other_names`), unless `hint` says more. `plural` is that of `kind` where it
    does not end in a plain s.
    """
    names = sorted(choices)
    hint = hint or meant_hint(kind, word) or nearest_hint(word, names)
    return f"unknown {kind} '{harmless(word, 200)}'{hint or '.'} The {plural or f'{kind}s'} are {', '.join(names)}"


def unknown_flag(given: str, known: Iterable[str], value: Any = None) -> str:
    """The sentence about a flag that is none: what it is called here, or the nearest name."""
    word = given.removeprefix("--").replace("-", "_")
    if word not in (*DROPPED, *KEPT):
        return f"unknown flag {harmless(given, 200)}{meant_hint('flag', given) or nearest_hint(given, known)}"
    density = meant_density(word, value)
    number = "..." if density is None else f"{density:g}"
    return (
        f"unknown flag {given}{'' if value is None else f' {value}'}; did you mean --density {number}, in Python "
        f"density={number}? It is the fraction that is kept"
    )


def nearest_hint(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `choices`, or nothing where none of them is near."""
    names = list(choices)
    # To look for what is near takes the square of the length: of a word that is no name, minutes.
    if len(word) > _LONGEST:
        return ""
    # A choice that begins with the word is what was meant, however long it is.
    close = sorted((name for name in names if word and name.startswith(word)), key=len)
    close = close or [max(names, key=lambda name: _likeness(word, name), default="")]
    return f"; did you mean '{close[0]}'?" if close[0] and _likeness(word, close[0]) >= _NEAR else ""


def meant_hint(kind: str, word: str) -> str:
    """`; did you mean 'x'?` with what a word of the field stands for, or nothing where it is no such word."""
    named = " or ".join(f"'{name}'" for name in meant(kind, word))
    return f"; did you mean {named}?" if named else ""


def _likeness(word: str, name: str) -> float:
    """How much alike two words are, from 0 to 1: the share of letters in common, more if they begin alike."""
    one, other = word.strip("-").lower(), name.strip("-").lower()
    ratio = SequenceMatcher(None, one, other).ratio()
    begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return ratio + 0.5 * begin / max(1, len(one)) * (1 - ratio)


def several_tasks(tasks: Sequence[str], most: int = 20) -> str:
    """What to say of a ticket of several tasks where it must be of one."""
    named = some_of(tasks, most)
    return f"the ticket is of {len(tasks)} tasks: choose one by --task, as --task {tasks[0]}; there are {named}"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are: `a, b and 3 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
