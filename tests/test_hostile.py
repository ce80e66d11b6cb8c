from __future__ import annotations

import hostile_files
import pytest
from hostile import KINDS, originals, try_files

import supermask
from ticket_search import RequestError, Run
from ticket_search.running.read_config import read_config


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


def test_hostile_files_beside_tickets_do_no_harm(tmp_path):
    found, _ = hostile_files.try_files(tmp_path, 2 * len(hostile_files.KINDS), seed=1)
    assert sum(found.values()) == 2 * len(hostile_files.KINDS)
    outcomes = {outcome.partition(": ")[2] for outcome in found}
    assert {"read", "refused"} <= outcomes
    assert {outcome.partition(":")[0] for outcome in found} == {kind.name for kind in hostile_files.KINDS}


@pytest.mark.slow
def test_many_hostile_files_beside_tickets_do_no_harm(tmp_path):
    found, _ = hostile_files.try_files(tmp_path, 20_000)
    assert sum(found.values()) == 20_000


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock", "events.out.tfevents.1", "levels"])
def test_a_run_that_goes_on_writes_through_no_link(name, tmp_path):
    hostile_files.make_bases(tmp_path)
    folder, outside = tmp_path / "stopped", tmp_path / "outside"
    if name == "levels":
        (folder / name).rename(outside)
    else:
        outside.write_text("what is not ours")
        (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    run = Run(folder, read_config(folder))
    with pytest.raises(RequestError, match=f"{name} is a link to .*outside"), run.opened():
        pass
    assert outside.is_dir() or outside.read_text() == "what is not ours"
