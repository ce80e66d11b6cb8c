"""Lists of cases and their products: some in every run of the tests, all of them in the slow one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def combine(whole: Collection[Any] = (), /, **lists: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize by the combinations of several lists, of which those beside the diagonal are `slow`.

    The diagonal has as many combinations as the longest list has cases, and takes those of a shorter one in turn. The
    cases in `whole` are met in every run with all cases of the other lists.
    """
    cases = {name: list(values) for name, values in lists.items()}
    longest = max(map(len, cases.values()))
    diagonal = {tuple(i % len(values) for values in cases.values()) for i in range(longest)}
    return _parametrize(
        cases, lambda where: where in diagonal or any(v[i] in whole for v, i in zip(cases.values(), where, strict=True))
    )


def combine_pairs(**lists: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize by the combinations of three lists; every run meets every pair of cases, and the slow one all three.

    The longest two lists are combined in full, and the third one's cases are those of a Latin square.
    """
    cases = {name: list(values) for name, values in lists.items()}
    order = sorted(range(3), key=lambda place: -len(list(cases.values())[place]))
    fewest = min(map(len, cases.values()))
    return _parametrize(cases, lambda where: (where[order[0]] + where[order[1]]) % fewest == where[order[2]])


def thin(cases: Iterable[Any], step: int, first: int = 0) -> list[Any]:
    """Of the cases of one list every run meets each `step`-th, beginning with `first`; the others are `slow`."""
    return [
        pytest.param(case, marks=() if place % step == first else pytest.mark.slow) for place, case in enumerate(cases)
    ]


def _parametrize(cases: dict[str, list[Any]], often: Callable[[tuple[int, ...]], bool]) -> pytest.MarkDecorator:
    """All combinations, `slow` but for those of `often`, which is given the place of each case in its list."""
    return pytest.mark.parametrize(
        tuple(cases),
        [
            pytest.param(
                *(values[i] for i, values in zip(where, cases.values(), strict=True)),
                marks=[] if often(where) else pytest.mark.slow,
            )
            for where in itertools.product(*(range(len(values)) for values in cases.values()))
        ],
    )
