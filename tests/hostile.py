"""Hostile ticket files: mutated, truncated and made by hand.

    python tests/hostile.py --count 200000          # from the project's root; some ten minutes
    python tests/hostile.py --files 20000           # what lies beside tickets: `hostile_files.py`

Each must load right or raise `TicketError`, within a second, and take no more memory than it declares. Right means: the
ticket that was changed, where the change left no right checksum; else what the reader of `docs/ticket_format.md` reads.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import struct
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ticket_bytes import drawn_ticket, full_ticket, put_together, read_by_page, take_apart, tasks_ticket

import supermask
from supermask import Ticket, TicketError
from ticket_search.cli.inspect import describe

SECONDS = 1.0
# What reading takes besides the file and what it declares: JSON, validation, pieces that are worked on.
OVERHEAD = 6_000_000
MAX_WEIGHTS = 100_000
# What the most costly file so far has taken, and which it was.
MOST: dict[str, tuple[float, str]] = {"seconds": (0.0, ""), "bytes": (0, "")}

EVIL: list[Any] = [
    None, True, -1, 0, 1, 2, 7, 2**31, 2**53, 2**60, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, "", "x", "os.system",
    "../../evil", "\x00", "\x1b[31m", "\u202e", "F32", "F16", "U8", "ones", "kaiming-normal", [], {}, [0], [2**60] * 4,
    [-1], [[]], {"": {}}, {"kept": 1}, "0" * 64,
]  # fmt: skip
EVIL_TEXTS = [
    "[" * 100_000, '{"a":' * 50_000, '{"format": NaN}', '{"format": 1, "meta": {"a": 1e999}}', "null", "[]", "1", '""',
    '{"format": 1, "format": 1}', '{"format": ' + "9" * 5000 + "}", '{"format": 1, "meta": {"\\ud800": 1}}', "{", "",
    '{"format": 1, "meta": {"a": ' + "[" * 500 + "]" * 500 + "}}", '{"format": 1e0}', '{"format": "1"}',
]  # fmt: skip


@cache
def originals() -> list[tuple[bytes, Ticket]]:
    tickets = [full_ticket(), drawn_ticket(shape=(20, 30)), drawn_ticket("kaiming-normal", 0.02, (64, 50))]
    tickets += [tasks_ticket(), tasks_ticket(drawn=False)]
    return [(supermask.pack(ticket), ticket) for ticket in tickets]


def truncated(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data))]


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 9)):
        changed[random.integers(len(data))] ^= 1 << random.integers(8)
    return bytes(changed)


def spliced(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes left out, doubled, or put in."""
    start, end = sorted(random.integers(0, len(data), 2))
    middle = [b"", data[start:end] * 2, random.bytes(random.integers(1, 64)), data[:end]][random.integers(4)]
    return data[:start] + middle + data[end:]


def lying(data: bytes, random: np.random.Generator) -> bytes:
    """Another length of the header."""
    (length,) = struct.unpack("<Q", data[:8])
    other = [length + int(random.integers(-20, 20)), 0, 2, 2**20, 2**31, 2**60, 2**64 - 1][random.integers(7)]
    return struct.pack("<Q", other % 2**64) + data[8:]


def garbage(data: bytes, random: np.random.Generator) -> bytes:
    head = [b"", struct.pack("<Q", int(random.integers(0, 300))), b"PK\x03\x04", b"\x80\x02cos\nsystem\n"][
        random.integers(4)
    ]
    return head + random.bytes(random.integers(0, 300))


def body_flipped(data: bytes, random: np.random.Generator) -> bytes:
    """The coded bits and the values changed, under a right checksum."""
    outer, description, body = take_apart(data)
    return put_together(outer, description, flipped(body, random))


def body_random(data: bytes, random: np.random.Generator) -> bytes:
    outer, description, body = take_apart(data)
    return put_together(outer, description, random.bytes(len(body)))


def described_wrongly(data: bytes, random: np.random.Generator) -> bytes:
    """One to three values of the description changed, under a right checksum."""
    outer, description, body = take_apart(data)
    for _ in range(random.integers(1, 4)):
        mutate(description, random)
    if random.integers(3) == 0:
        body = flipped(body, random)
    return put_together(outer, description, body)


def container_wrong(data: bytes, random: np.random.Generator) -> bytes:
    """One to three values of the safetensors header changed, under a right checksum."""
    outer, description, body = take_apart(data)
    for _ in range(random.integers(1, 4)):
        mutate(outer, random)
    return put_together(outer, description, body)


def counts_shifted(data: bytes, random: np.random.Generator) -> bytes:
    """Small changes of the numbers that say how bits are coded, under a right checksum."""
    outer, description, body = take_apart(data)
    entries = [entry for entry in all_entries(description) if entry]
    for _ in range(random.integers(1, 4)):
        entry = entries[random.integers(len(entries))]
        shift = int(random.integers(-3, 4))
        if random.integers(3) == 0:
            entry["kept"] = max(0, entry["kept"] + shift)
        else:
            rice = entry.setdefault("rice", [0, 0])
            place = random.integers(2)
            rice[place] = max(0, rice[place] + shift)
    return put_together(outer, description, body)


def all_entries(description: dict[str, Any]) -> list[dict[str, Any]]:
    masks = [tensor["mask"] for tensor in description["tensors"].values() if "mask" in tensor]
    masks += [entry for chosen in description.get("sets", {}).values() for entry in chosen.values()]
    levels = [level for entry in masks for level in entry.get("levels", [])]
    signs = [plane for state in description.get("states", {}).values() for plane in state.get("signs", {}).values()]
    return masks + levels + signs


def reshaped(data: bytes, random: np.random.Generator) -> bytes:
    """Shapes that are other, huge or bombs within what is allowed, under a right checksum."""
    outer, description, body = take_apart(data)
    tensors = list(description["tensors"].values())
    tensor = tensors[random.integers(len(tensors))]
    shape = tensor["shape"]
    tensor["shape"] = [
        shape[::-1], [2**60], [2**30, 2**30], [MAX_WEIGHTS // 2, 1], [0, 2**61], [1] * 40, [*shape, 1], [], shape + shape,
    ][random.integers(9)]  # fmt: skip
    return put_together(outer, description, body)


def bomb(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes that describe many weights: all kept, none kept, or one block, drawn or not."""
    size = int(random.integers(1, 2 * MAX_WEIGHTS))
    entry = [{"kept": size, "rice": [0, 0]}, {"kept": 0, "rice": [0, 0]}, {"kept": 0, "block": [size, 1]}][
        random.integers(3)
    ]
    description = {
        "tensors": {"w": {"shape": [size, 1], "mask": entry}},
        "sets": {str(index): {"w": entry} for index in range(random.integers(0, 20))},
        "states": {
            "start": {
                "fingerprint": "0" * 63 + "1",
                "drawn": [{"init": "signed-constant", "seed": 1, "scale": 1.0, "names": ["w"]}],
            }
        },
    }
    if random.integers(2):
        # The same of several tasks: together they may describe more than is allowed.
        del description["tensors"]["w"]["mask"]
        description["backbone"] = description["states"].pop("start")
        own = {"start": {"fingerprint": "0" * 64}}
        description |= {"states": {}, "tasks": {name: {"states": own} for name in description["sets"]}}
    length = int("block" in entry) * (len(description["sets"]) + len(description["states"]))
    outer = {"bits": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}
    return put_together(outer, description, bytes(length))


def doubled(data: bytes, random: np.random.Generator) -> bytes:
    """A name that is there twice: in the safetensors header or in the description."""
    outer, description, body = take_apart(data)
    if random.integers(2):
        text = json.dumps(outer)[1:-1]
        return put_together(f"{text}, {text}", description, body)
    key = list(description)[random.integers(len(description))]
    value = json.dumps(description[key])
    text = json.dumps({**description, "checksum": "0" * 64})
    return put_together(outer, f"{text[:-1]}, {json.dumps(key)}: {value}}}", body)


def strange_text(data: bytes, random: np.random.Generator) -> bytes:
    """A description, or a safetensors header, that is deep, not a number, or no JSON."""
    outer, _, body = take_apart(data)
    text = EVIL_TEXTS[random.integers(len(EVIL_TEXTS))]
    if random.integers(2):
        return put_together(outer, text, body)
    return struct.pack("<Q", len(text)) + text.encode() + body


def mutate(value: Any, random: np.random.Generator, evil: Sequence[Any] = EVIL) -> None:
    """Change one value somewhere in plain JSON, take it away, or put it elsewhere."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        inner = stack.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            places.append((inner, key))
            if isinstance(inner[key], (dict, list)):
                stack.append(inner[key])
    if not places:
        return
    where, key = places[random.integers(len(places))]
    kind = random.integers(4)
    if kind == 0:
        del where[key]
    elif kind == 1:
        where[key] = copy.deepcopy(evil[random.integers(len(evil))])
    elif kind == 2:
        other, other_key = places[random.integers(len(places))]
        where[key] = copy.deepcopy(other[other_key])
    elif isinstance(where[key], int):
        where[key] += int(random.integers(-3, 4))
    elif isinstance(where, dict):
        where[str(evil[random.integers(len(evil))])] = where.pop(key)


# Whether the checksum of the changed file is right.
KINDS: dict[Callable[[bytes, np.random.Generator], bytes], bool] = {
    truncated: False, flipped: False, spliced: False, lying: False, garbage: False, body_flipped: True,
    body_random: True, described_wrongly: True, container_wrong: True, counts_shifted: True, reshaped: True, bomb: True,
    doubled: True, strange_text: True,
}  # fmt: skip


def try_file(number: int, seed: int = 0) -> str:
    """Make hostile file `number`, load it, and say what became of it.

    Raises:
        AssertionError: it did harm.
    """
    random = np.random.default_rng([seed, number])
    data, original = originals()[random.integers(len(originals()))]
    make = list(KINDS)[number % len(KINDS)]
    hostile = make(data, random)
    about = f"{make.__name__}, file {number} of seed {seed}"
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.process_time()
    ticket, tensors, declared = None, {}, 0
    try:
        ticket = supermask.load(hostile, max_weights=MAX_WEIGHTS)
        declared = declared_bytes(ticket)
        json.dumps(describe(ticket, len(hostile))), repr(ticket)
        masks = [dict(ticket.masks), dict(ticket.levels), *(dict(chosen) for chosen in ticket.sets.values())]
        tensors = {state: ticket.state_dict(state) for state in ticket.states}
        if ticket.tasks:
            ones = {name: ticket.task(name) for name in ticket.tasks}
            tensors = {(name, state): one.state_dict(state) for name, one in ones.items() for state in one.states}
    except TicketError:
        pass
    except Exception as error:
        raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error
    took = time.process_time() - started
    used = tracemalloc.get_traced_memory()[1] - before
    MOST["seconds"], MOST["bytes"] = max(MOST["seconds"], (took, about)), max(MOST["bytes"], (used, about))
    assert took < SECONDS, f"{about}: {took:.2f} s"
    assert used < OVERHEAD + 20 * len(hostile) + declared, f"{about}: {used:,} bytes, declared {declared:,}"
    if ticket is None:
        return "refused"
    if not KINDS[make]:
        assert ticket == original, f"{about}: another ticket, in silence"
        return "unharmed"
    found = read_by_page(hostile)
    whole = found["masks"]
    for task in found["tasks"]:
        for name, mask in found["sets"][task].items():
            whole[name] = whole[name] | mask if name in whole else mask
    for mine, theirs in zip(masks, [whole, found["levels"], *found["sets"].values()], strict=True):
        assert mine.keys() == theirs.keys(), about
        assert all(np.array_equal(mine[name].numpy(), theirs[name]) for name in mine), f"{about}: a wrong mask"
    for state, loaded in tensors.items():
        for name, tensor in loaded.items():
            wide = tensor.float().numpy() if tensor.dtype.is_floating_point else tensor.numpy()
            read = found["states"][state] if isinstance(state, str) else found["tasks"][state[0]][state[1]]
            same = np.array_equal(wide, read[name], equal_nan=wide.dtype.kind == "f")
            assert same, f"{about}: wrong weights"
    return "read as it says" if tensors or not (ticket.states or ticket.tasks) else "masks read, weights refused"


def declared_bytes(ticket: Ticket) -> int:
    """What a ticket's masks and weights take: float64 while they are drawn, some of it twice."""
    weights = sum(int(np.prod(shape)) for shape in ticket.masks.shapes.values())
    tasks = [ticket.task(name) for name in ticket.tasks]
    for state in (state for each in (ticket, *tasks) for state in each.states.values()):
        weights += sum(int(np.prod(draw.shape)) for draw in state.drawn.values())
        weights += sum(shape_of(state.stored, name) for name in state.stored)
    in_sets = sum(int(np.prod(shape)) for chosen in ticket.sets.values() for shape in chosen.shapes.values())
    return 64 * weights + 2 * in_sets


def shape_of(stored: Any, name: str) -> int:
    """The size of a stored tensor, without laying it out: of what tasks share it is in the second of two mappings."""
    part = next(each for each in getattr(stored, "maps", (stored,)) if name in each)
    return int(np.prod(part.shape(name)))


def try_files(count: int, seed: int = 0, each: Callable[[], object] = lambda: None, first: int = 0) -> Counter[str]:
    """What became of `count` hostile files; none of them left its folder or changed it."""
    before = sorted(os.listdir())
    tracemalloc.start()
    try:
        found: Counter[str] = Counter()
        for number in range(first, first + count):
            found[try_file(number, seed)] += 1
            each()
    finally:
        tracemalloc.stop()
    assert sorted(os.listdir()) == before
    return found


def main() -> None:
    from rich.console import Console
    from rich.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="begin with this file, to go on or to take a part")
    options = parser.parse_args()
    started, count = time.perf_counter(), options.files or options.count
    with Progress(console=Console(stderr=True), refresh_per_second=0.5) as progress:
        task = progress.add_task("hostile files", total=count)
        found, most = try_all(count, options, lambda: progress.advance(task))
    for outcome, times in sorted(found.items(), key=lambda item: (item[0].partition(":")[0], -item[1])):
        print(f"{times:8,}  {outcome}")
    print(f"{count:8,}  in {time.perf_counter() - started:.0f} s (seed {options.seed}); {most}")


def try_all(count: int, options: argparse.Namespace, each: Callable[[], object]) -> tuple[Counter[str], str]:
    """What became of hostile tickets, or of the files beside them, and what the most costly of them took."""
    if not options.files:
        found = try_files(count, options.seed, each, options.first)
        (took, slow), (used, large) = MOST["seconds"], MOST["bytes"]
    else:
        import hostile_files

        with tempfile.TemporaryDirectory() as root:
            found, trial = hostile_files.try_files(Path(root), count, options.seed, each, options.first)
        (took, slow), (used, large) = trial.longest, trial.largest
    return found, f"at most {took:.2f} s ({slow}) and {used / 1e6:.1f} MB ({large})"


if __name__ == "__main__":
    main()
