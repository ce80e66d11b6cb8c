"""Products of lists of cases: each case of each list in every run of the tests, all combinations in the slow one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def combine(**lists: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize by the combinations of several lists, of which those beside the diagonal are `slow`.

    The diagonal has as many combinations as the longest list has cases, and takes those of a shorter one in turn.
    """
    cases = {name: list(values) for name, values in lists.items()}
    longest = max(map(len, cases.values()))
    diagonal = {tuple(i % len(values) for values in cases.values()) for i in range(longest)}
    return pytest.mark.parametrize(
        tuple(cases),
        [
            pytest.param(
                *(values[i] for i, values in zip(where, cases.values(), strict=True)),
                marks=[] if where in diagonal else pytest.mark.slow,
            )
            for where in itertools.product(*(range(len(values)) for values in cases.values()))
        ],
    )
