"""What a user's own code sees of the types, checked by mypy (see test_house.py); never run."""

from pathlib import Path
from typing import assert_type

from torch import Tensor, nn

import supermask
from supermask import Masks, Ticket
from ticket_search import Run, compare, controls, search
from ticket_search.analysis.findings import Verdict

run = search("imp", density=0.2)
assert_type(run, Run)
assert_type(run.path, Path)
assert_type(run.ticket, Ticket)
assert_type(run.summary["test_accuracy"], float)
assert_type(run.summary["cost"]["dense_trainings"], float)
assert_type([level["kept"] for level in run.levels], list[int])
assert_type(run.levels[0]["min_validation_loss"]["step"], int)
assert_type(run.ticket.masks["fc1.weight"], Tensor)
assert_type(run.ticket.density, float)
assert_type(run.ticket.model(), nn.Module)
assert_type(supermask.load("ticket.safetensors"), Ticket)
assert_type(supermask.prune(nn.Linear(2, 3), 0.5), Masks)
assert_type(controls(run)[0]["test_accuracy"], float)
for group in compare([run]).groups:
    assert_type(group.mean, float)
    assert_type(group.levels[0].values, tuple[float, ...])
    assert_type(group.verdict, Verdict | None)
run.summary["test_acuracy"]  # type: ignore[typeddict-item]
