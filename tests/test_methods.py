"""What must hold for every method: the checks are in method_tests.py, where other packages call them too."""

from __future__ import annotations

import pytest
from method_tests import Searches, checks_of

from ticket_search.methods import method_names

METHODS = method_names()


@pytest.fixture(scope="module")
def searches(tmp_path_factory) -> Searches:
    # So wide that a ten-thousandth of the weights is one of them.
    return Searches(tmp_path_factory.mktemp("searches"), model_args="width=0.5", train_size=900)


@pytest.mark.parametrize(
    ("name", "check"),
    [pytest.param(name, check, id=f"{name}-{check.__name__}") for name in METHODS for check in checks_of(name)],
)
def test_a_method(name, check, searches):
    check(name, searches)
