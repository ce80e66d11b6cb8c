from __future__ import annotations

import pytest
from hostile import KINDS, originals, try_files

import supermask


def test_hostile_files_do_no_harm():
    found = try_files(300, seed=1)
    assert sum(found.values()) == 300
    # The files get past the first checks often enough to say something.
    assert found["refused"] > 70
    assert found["masks read, weights refused"] > 15
    assert found["read as it says"] > 0


@pytest.mark.slow
def test_many_hostile_files_do_no_harm():
    assert sum(try_files(200_000).values()) == 200_000


def test_hostile_files_are_ours_but_for_what_makes_them_hostile():
    for data, ticket in originals():
        assert supermask.load(data) == ticket
    assert len(KINDS) >= 10
