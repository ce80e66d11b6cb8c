"""Ticket files taken apart and put together again, and read by the reader of `docs/ticket_format.md`."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import Residual

import supermask
from supermask import Draw, Masks, Ticket, make_state

META = {
    "method": "imp", "level": 3, "nested": {"list": [1, 2.5, None, "ä"]}, "parameters": 2000, "model": "conv4",
    "architecture": {"name": "conv4", "arguments": {"classes": 10}}, "accuracy": {"final": {"test": 97.2}}, "seed": 3,
}  # fmt: skip
PAGE = Path(__file__).parent.parent / "docs" / "ticket_format.md"


@cache
def blocks() -> list[str]:
    """The code on the page: the reader, and the drawn tensors."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@cache
def page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def read_by_page(data: bytes) -> dict[str, Any]:
    """Masks, levels, sets and state dicts, by the page's reader alone: NumPy arrays."""
    ticket, values = page()["read_ticket"](io.BytesIO(data))
    shapes = {name: tensor["shape"] for name, tensor in ticket["tensors"].items()}
    described = {name: tensor["mask"] for name, tensor in ticket["tensors"].items() if "mask" in tensor}
    stream = io.BytesIO(values["bits"].tobytes())
    read_mask, read_bits = page()["read_mask"], page()["read_bits"]
    both = {name: read_mask(stream, entry, shapes[name]) for name, entry in described.items()}
    masks = {name: mask for name, (mask, _) in both.items()}
    levels = {name: both[name][1] for name, entry in described.items() if "levels" in entry}
    sets = {
        which: {name: read_mask(stream, entry, shapes[name])[0] for name, entry in entries.items()}
        for which, entries in ticket.get("sets", {}).items()
    }

    def read_state(place: str, source: dict[str, Any], masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {}
        for group in source.get("drawn", []):
            for name in group["names"]:
                tensors[name] = page()["draw"](group["init"], shapes[name], group["seed"], name, group["scale"])
        for name, gain in source.get("gains", {}).items():
            tensors[name] = tensors[name] * np.float32(gain)
        for name, entry in source.get("signs", {}).items():
            kept = masks.get(name, np.ones(shapes[name], bool))
            flips = np.zeros(shapes[name], bool)
            flips[kept] = read_bits(stream, entry, int(kept.sum()), entry["kept"])
            tensors[name] = np.where(flips, -tensors[name], tensors[name])
        for name, dtype in source.get("stored", {}).items():
            given = values[f"{place}/{name}"]
            tensor = np.zeros(shapes[name], np.float32 if dtype == "F32" else given.dtype)
            tensor[masks.get(name, np.ones(shapes[name], bool))] = given
            tensors[name] = tensor
        return drop(tensors, masks)

    states = {name: read_state(name, source, masks) for name, source in ticket.get("states", {}).items()}
    shared = read_state("backbone", ticket["backbone"], {}) if "backbone" in ticket else {}
    tasks = {
        task: {
            name: drop(shared, sets[task]) | read_state(f"tasks/{task}/{name}", source, sets[task])
            for name, source in described["states"].items()
        }
        for task, described in ticket.get("tasks", {}).items()
    }
    assert not stream.read()
    return {"ticket": ticket, "masks": masks, "levels": levels, "sets": sets, "states": states, "tasks": tasks}


def drop(tensors: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.where(masks[name], tensor, tensor.dtype.type(0)) if name in masks else tensor
        for name, tensor in tensors.items()
    }


def take_apart(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The safetensors header without its metadata, the ticket's description, and the tensors' bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    outer = json.loads(data[8 : 8 + length])
    description = json.loads(outer.pop("__metadata__")["supermask"])
    return outer, description, data[8 + length :]


def put_together(outer: dict[str, Any] | str, description: dict[str, Any] | str, body: bytes) -> bytes:
    """A file with a checksum that is right, whatever else is wrong. Texts are taken as they are."""
    if isinstance(description, dict):
        version = 2 if "tasks" in description else 1
        description = json.dumps({"format": version, **description, "checksum": "0" * 64})
    entries = json.dumps(outer)[1:-1] if isinstance(outer, dict) else outer
    head = '{"__metadata__": {"supermask": ' + json.dumps(description) + "}" + (f", {entries}" if entries else "") + "}"
    whole = struct.pack("<Q", len(head.encode())) + head.encode() + body
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)


def rewrite(data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """The file with its description or its safetensors header changed, and the checksum mended."""
    outer, description, body = take_apart(data)
    change(description, outer)
    return put_together(outer, description, body)


def full_ticket() -> Ticket:
    """A small ticket with all that a file can hold."""
    torch.manual_seed(0)
    model = Residual()
    draws = supermask.initialize(model, "kaiming-normal", seed=3)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = dict(supermask.prune(model, 0.3))
    filters = torch.arange(8) % 3 == 0
    masks["block.0.weight"] = filters[:, None, None, None].expand_as(masks["block.0.weight"]).clone()
    masks["block.0.bias"] = filters.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.norm.running_mean.add_(0.5)
        model.norm.num_batches_tracked.add_(7)
    final = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Signed, and signed with a gain: the very weights of the start otherwise.
    flips = torch.rand_like(start["stem.weight"]) < 0.4
    final["stem.weight"] = torch.where(flips, -start["stem.weight"], start["stem.weight"])
    final["head.weight"] = start["head.weight"] * torch.tensor(0.7)
    levels = {name: mask.to(torch.uint8) for name, mask in masks.items() if name == "stem.weight"}
    levels["stem.weight"] += (masks["stem.weight"] & (torch.rand_like(start["stem.weight"]) < 0.6)).to(torch.uint8)
    levels["stem.weight"] += ((levels["stem.weight"] == 2) & (torch.rand_like(start["stem.weight"]) < 0.5)).to(
        torch.uint8
    )
    whole = Masks(masks, ["block.0.bias"])
    sets = {"task-1": whole.shuffled(1), "task-2": Masks({"stem.weight": ~masks["stem.weight"]})}
    states = {
        "start": make_state(start, whole, draws),
        "final": make_state(final, whole, draws, gains={"head.weight": 0.7}, dtype=torch.bfloat16),
    }
    assert set(states["final"].signs) == {"stem.weight"}
    assert states["final"].gains == {"head.weight": 0.7}
    return Ticket(whole, states, META, sets, levels)


def drawn_ticket(init: str = "signed-constant", density: float = 0.5, shape: tuple[int, int] = (300, 784)) -> Ticket:
    """A seeded ticket of one tensor."""
    draw = Draw(init, 5, 1.25, shape)
    masks = Masks({"fc.weight": torch.from_numpy(np.random.default_rng(0).random(shape) < density)})
    return Ticket(masks, {"start": make_state({"fc.weight": draw.tensor("fc.weight")}, masks, {"fc.weight": draw})})


def tasks_ticket(drawn: bool = True) -> Ticket:
    """A small ticket of three tasks, with statistics of norms and a bias of their own; the weights drawn or stored."""
    torch.manual_seed(0)
    model = Residual()
    draws = supermask.initialize(model, "signed-constant", seed=3) if drawn else {}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tickets = {}
    for number, name in enumerate(("0", "1", "two")):
        masks = supermask.prune(model, 0.4, "random", allocation="layerwise", seed=number)
        final = dict(weights)
        final["norm.running_mean"] = torch.full_like(weights["norm.running_mean"], 0.5 + number)
        final["norm.num_batches_tracked"] = weights["norm.num_batches_tracked"] + 7
        final["head.bias"] = weights["head.bias"] + number
        states = {"start": make_state(weights, masks, draws), "final": make_state(final, masks, draws)}
        tickets[name] = Ticket(masks, states, {**META, "accuracy": {"final": {"test": 90.0 + number}}})
    return supermask.join_tasks(tickets, weights)
