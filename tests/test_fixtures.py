"""Files that were written once and must be read for ever: `tests/fixtures/format-N` is what format N looked like.

A new format gets a folder of its own (`python tests/test_fixtures.py`, which overwrites nothing); no file in an old one
is ever changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from ticket_bytes import drawn_ticket, full_ticket, read_by_page, tasks_ticket

import supermask
from supermask import Masks, Ticket, make_state
from supermask.tickets.header import FORMAT
from supermask.weights.inits import WEIGHT_INITS

pytestmark = pytest.mark.quick

FOLDER = Path(__file__).parent / "fixtures"
FILES = sorted(FOLDER.glob("format-*/*.safetensors"))


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def describe(ticket: Ticket) -> dict:
    """All that a file says, as text: shapes, dtypes and digests of what was read."""
    if ticket.tasks:
        return {"density": ticket.density, "tasks": {name: describe(ticket.task(name)) for name in ticket.tasks}}
    return {
        "meta": ticket.meta,
        "uncounted": sorted(ticket.masks.uncounted),
        "masks": {name: [list(mask.shape), digest(mask)] for name, mask in ticket.masks.items()},
        "levels": {name: digest(levels) for name, levels in ticket.levels.items()},
        "sets": {which: {name: digest(mask) for name, mask in masks.items()} for which, masks in ticket.sets.items()},
        "states": {
            state: {name: [str(tensor.dtype), digest(tensor)] for name, tensor in ticket.state_dict(state).items()}
            for state in ticket.states
        },
    }


def test_every_format_has_fixtures():
    assert {path.parent.name for path in FILES} == {f"format-{number}" for number in range(1, FORMAT + 1)}
    assert {path.stem for path in FILES} == {path.stem for path in FOLDER.glob("format-*/*.json")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_old_files_are_read(path):
    ticket = supermask.load(path)
    assert describe(ticket) == json.loads(path.with_suffix(".json").read_text())
    # Both formats are written: the second of several tasks only.
    assert supermask.pack(ticket) == path.read_bytes()
    assert read_by_page(path.read_bytes()).keys() == {"ticket", "masks", "levels", "sets", "states", "tasks"}


def tickets() -> dict[str, Ticket]:
    """What there is in a format of its own: tickets of several tasks, over weights that are drawn or stored."""
    return {"tasks-drawn": tasks_ticket(), "tasks-stored": tasks_ticket(drawn=False)}


def tickets_of_format_1() -> dict[str, Ticket]:
    """One of each kind: all that a file can hold, every init, every coding, halves of weights, masks alone."""
    found = {"full": full_ticket(), **{init: drawn_ticket(init, 0.3, (23, 17)) for init in sorted(WEIGHT_INITS)}}
    found |= {f"density-{density}": drawn_ticket(density=density, shape=(40, 50)) for density in (0, 0.02, 0.9, 1)}
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(20, 10, generator=generator), "b": torch.randn(20, generator=generator)}
    masks = Masks({"w": torch.rand(20, 10, generator=generator) < 0.4})
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[name] = Ticket(masks, {"final": make_state(weights, masks, dtype=dtype)}, {"method": "imp"})
    found["masks-alone"] = Ticket(masks, {})
    return found


def test_tickets_of_one_task_keep_their_bytes():
    for name, ticket in tickets_of_format_1().items():
        assert supermask.pack(ticket) == (FOLDER / "format-1" / f"{name}.safetensors").read_bytes(), name


def main() -> None:
    folder = FOLDER / f"format-{FORMAT}"
    folder.mkdir(parents=True)
    for name, ticket in tickets().items():
        supermask.save(ticket, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(describe(ticket), indent=1) + "\n")
    print(f"wrote {len(list(folder.iterdir()))} files to {folder}")


if __name__ == "__main__":
    main()
