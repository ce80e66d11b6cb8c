"""What must hold for every method: the checks are in method_tests.py, where other packages call them too."""

from __future__ import annotations

import pytest
from method_tests import (
    Searches,
    another_seed_gives_another_ticket,
    checks_of,
    extreme_densities_are_met_or_refused,
    the_test_data_choose_nothing,
)

from ticket_search.methods import method_names

METHODS = method_names()
# Of methods that are one search with another score or rule, one is asked in every run what that search decides.
SAME_SEARCH = ("grasp", "magnitude-at-init", "random", "synflow", "set", "wanda")  # as snip, rigl and sparsegpt
each_search = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SAME_SEARCH else []) for name in METHODS]
)
# Those that search each in a way of its own: for checks of what all of them have from the loop and the plan.
OWN_WAY = ("imp", "edge-popup", "snip", "gates", "rigl", "filters", "sparsegpt", "supsup")
some_searches = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OWN_WAY else [pytest.mark.slow]) for name in METHODS]
)
OF_THE_SEARCH = (
    another_seed_gives_another_ticket,
    extreme_densities_are_met_or_refused,
    the_test_data_choose_nothing,
)


@pytest.fixture(scope="module")
def searches(tmp_path_factory) -> Searches:
    return Searches(tmp_path_factory.mktemp("searches"), model_args="width=0.2", train_size=640, batch_size=80)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            check,
            id=f"{name}-{check.__name__}",
            marks=[pytest.mark.slow] if name in SAME_SEARCH and check in OF_THE_SEARCH else [],
        )
        for name in METHODS
        for check in checks_of(name)
    ],
)
def test_a_method(name, check, searches):
    check(name, searches)
