"""Hostile files beside tickets: the records of runs, saved states, compacted networks, tables and sweeps.

    python tests/hostile.py --files 20000          # from the project's root

Each is changed by itself in the folder of a real run, with a checksum that is stale, or forged to fit. What commands read
must give what was written, or an error of ours in one line that names the file: within a second, without much memory,
without an import, and without a change to any file.
"""

from __future__ import annotations

import contextlib
import encodings.cp437  # noqa: F401 - for names in zip files
import hashlib
import io
import json
import os
import resource
import shutil
import sys
import time
import tomllib
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import tomli_w
import torch

import supermask
from supermask import TicketError
from supermask.weights.architectures import name_elsewhere
from ticket_search import RequestError, RunError, analysis, sweeps
from ticket_search.cli.compare import _print_found
from ticket_search.cli.inspect import describe
from ticket_search.cli.runs import describe as describe_run
from ticket_search.methods import find_method, method_names
from ticket_search.questions.barriers import check_record, summarize
from ticket_search.running.read_config import read_config
from ticket_search.runs import states
from ticket_search.runs.earlier_run import read_weights
from ticket_search.runs.folders import find_run, inspect_folder
from ticket_search.runs.records import read_record, read_rows, seal
from ticket_search.runs.run import Run
from ticket_search.sweeps.study import read_study

RUNS = Path(__file__).parent / "fixtures" / "runs-0.1.0"
SECONDS = 1.0
MEMORY = 100_000_000
# Of one file in so many what it allocates is counted, which takes as long again; of all how far the process grows.
TRACED = 7
ERRORS = (RequestError, RunError, TicketError)

STRANGE_TEXTS = [
    b"", b"\0", b"null", b"[]", b"{}", b"1", b'""', b"{", b"[" * 100_000, b'{"a":' * 50_000, b"[[]]," * 100_000,
    b'{"rows": [' + b"[[]]," * 400_000 + b"1]}", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": "\\ud800"}', b"a = [" + b"[" * 90_000, b"a." * 40_000 + b"a = 1", b"[" + b"a." * 40_000 + b"a]",
    b'a = "' + b"x" * 90_000 + b'"', b"a = 1\na = 2", b"a = nan", b"a = 1979-05-27", "ä".encode("latin-1"),
    "a".encode("utf-16"), b"\xef\xbb\xbf{}", b"PK\x03\x04", b"\x80\x02cos\nsystem\n(S'true'\ntR.",
]  # fmt: skip
EVIL = [
    *hostile.EVIL, float("nan"), float("inf"), -1e308, "1", "\ud800", "a\nb", "a\0b", "/etc/passwd", "os:system",
    "higher", "imp", "dense", "never", [[[]]], {"name": "mae"}, {"name": "\x1b[31m"}, {"name": "mae", "unit": 3}, 1.0, 1e9,
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A file of a folder: how it is read, whether the folder's checksums vouch for it, or a seal of its own does."""

    base: str
    name: str
    read: Callable[[Path], object]
    summed: bool = False
    sealed: bool = False
    # Whoever types its name is told what is wrong with it, and not its name again.
    typed: bool = False


def read_finished(folder: Path, shown: bool = True) -> object:
    """What commands read of a finished run before anything is trained or evaluated, and what they show of it."""
    found = find_run(str(folder))
    assert found == folder
    state = inspect_folder(folder)
    described = describe_run(folder)
    json.dumps(described)
    if state.state == "not a run":
        raise RequestError(state.why)
    config = read_config(folder)
    run = Run(folder, config)
    whole = [dict(run.summary), run.levels, run.metrics, repr(run), run.metric]
    whole += [list(row.items()) for row in read_rows(folder / "metrics.jsonl")]
    for name in ("controls.json", "connect.json", "environment.json"):
        if (folder / name).exists():
            record = read_record(folder, name)
            if name == "connect.json":
                whole.append(summarize(check_record(record, folder / name).rows))
    json.dumps(describe(run.ticket, 1)), run._repr_html_()
    if not shown:
        return whole
    compare_runs([folder])
    text = analysis.card.make_card(folder / "ticket.safetensors").text
    assert text.isprintable() or all(c.isprintable() or c == "\n" for c in text)
    return whole


def compare_runs(folders: list[Path], others: Any = ()) -> None:
    """A comparison, printed and as text; the names of files that are left out are in the error."""
    found = analysis.comparison.compare(folders, others=others)
    with contextlib.redirect_stdout(io.StringIO()):
        _print_found(found, True)
    for full in (False, True):
        analysis.tables.to_markdown(found, full=full).encode(), analysis.tables.to_latex(found, full=full).encode()
    analysis.tables.to_csv(found).encode(), json.dumps(analysis.findings.to_dict(found))
    if found.left_out:
        raise RequestError(found.left_out)


def read_stopped(folder: Path) -> object:
    """What resuming reads before it trains."""
    described = describe_run(folder)
    json.dumps(described)
    config = read_config(folder)
    run = Run(folder, config)
    damaged: list[str] = []
    state = states.read_newest(folder, damaged.append)
    if damaged:  # the state before it, or rows that are cut short: it is told
        raise RequestError(damaged)
    return [state["start"], state["seconds"], state["metrics_bytes"], *state["stages"]], run.metrics


def read_compact(folder: Path) -> object:
    net = supermask.load_compact(folder / "compact.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()}


def read_checkpoint(folder: Path) -> object:
    tensors, _ = read_weights(str(folder / "model.pt"))
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def read_numbers(folder: Path) -> object:
    rows = analysis.tables.read_csv(folder / "others.csv")
    compare_runs([], rows)
    return rows


def read_methods(folder: Path) -> object:
    lines = sweeps.table.read_csv(folder / "methods.csv")
    for density in {line.asked for line in lines}:
        sweeps.table.table_at(lines, density, {}).encode()
    sweeps.table.choices_as_text(lines).encode()
    return lines


KINDS = [
    *(Kind("finished", name, read_finished, summed=True) for name in (
        "config.toml", "summary.json", "controls.json",
    )),
    *(Kind("finished", name, partial(read_finished, shown=False), summed=True) for name in (
        "connect.json", "environment.json", "metrics.jsonl",
    )),
    Kind("finished", "checksums.json", partial(read_finished, shown=False)),
    Kind("finished", "origin.json", partial(read_finished, shown=False)),
    Kind("stopped", "config.toml", read_stopped, summed=True),
    Kind("stopped", "metrics.jsonl", read_stopped),
    Kind("stopped", "state.pt", read_stopped, sealed=True),
    Kind("stopped", "state.pt", read_stopped, sealed=True),
    Kind("compact", "compact.safetensors", read_compact),
    Kind("compact", "model.pt", read_checkpoint),
    Kind("tables", "others.csv", read_numbers),
    Kind("tables", "methods.csv", read_methods),
    Kind("tables", "sweep.toml", lambda folder: sweeps.file.read_sweep(folder / "sweep.toml"), typed=True),
    Kind("tables", "study.toml", lambda folder: read_study(folder / "study.toml"), typed=True),
]  # fmt: skip


def make_bases(root: Path) -> None:
    """The folders that are made hostile, one file at a time."""
    shutil.copytree(RUNS / "finished" / "imp", root / "finished")
    shutil.copytree(RUNS / "stopped" / "imp", root / "stopped")
    shutil.copytree(RUNS / "finished" / "filters", root / "compact")
    folder = root / "finished"
    errors = {"errors": [20.0, 30.0, 20.0], "losses": [1.0, 2.0, 1.0], "ends": [20.0, 20.0]}
    row = {"arm": "dense", "level": None, "density": 1.0, "step": 0, "pair": 0, "order_seeds": [1, 2], "barrier": 10.0}
    metric = {"name": "accuracy", "direction": "higher", "unit": "%"}
    record = {"metric": metric, "points": 3, "rows": [{**row, "loss_barrier": 1.0, **errors}]}
    (folder / "connect.json").write_text(json.dumps(record))
    (folder / "origin.json").write_text(json.dumps({"names": {}, "hmac": "0" * 64}))
    for base in ("finished", "stopped"):
        for name in ("config.toml", "summary.json", "controls.json", "connect.json", "environment.json"):
            if (root / base / name).exists():
                vouch(root / base, name)
    vouch(folder, "metrics.jsonl")
    state = (root / "stopped" / "state.pt").read_bytes()
    (root / "stopped" / "state.pt").write_bytes(seal(state))
    ticket = supermask.load(root / "compact" / "ticket.safetensors")
    torch.save({"state_dict": ticket.state_dict(), "epoch": 3}, root / "compact" / "model.pt")
    tables = root / "tables"
    tables.mkdir()
    (tables / "others.csv").write_text(
        "method,density,seed,test_accuracy,control\n"
        + "".join(f"mine,{density},{seed},{90 + seed},\n" for density in (1, 0.5) for seed in range(5))
        + "".join(f"mine,0.5,{seed},{80 + seed},reinit\n" for seed in range(5))
    )
    names = [field.name for field in sweeps.table.fields(sweeps.table.Line)]
    values = ["s", "run", "lenet-300-100", "3", "imp", "imp", "", "0.5", "0", "10", "20", "10", "90", "89", "2", "1.5", "900",
              "0.1", "", "{}"]  # fmt: skip
    given = dict(zip(names, values, strict=False))
    order = {"sweep": "s", "role": "run", "model": "lenet-300-100", "epochs": "3", "label": "imp", "method": "imp",
             "control": "", "asked": "0.5", "seed": "0", "kept": "10", "weights": "20", "effective": "10", "value": "90",
             "validation": "89", "trainings": "2", "seconds": "1.5", "file_bytes": "900", "lr": "0.1", "sampled": "",
             "flags": "{}"}  # fmt: skip
    lines = [{**given, **order, "seed": str(seed), "role": role} for seed in range(3) for role in ("run", "trial")]
    (tables / "methods.csv").write_text(
        "\n".join([",".join(names), *(",".join(line[name] for name in names) for line in lines)]) + "\n"
    )
    sweep = {"base": {"model": "lenet-300-100", "data": "digits", "epochs": 2}, "grid": {"method": ["imp", "dense"]}}
    sweep |= {"seeds": "0-1", "runs": [{"method": "snip", "density": 0.5}]}
    (tables / "sweep.toml").write_text(tomli_w.dumps(sweep))
    study = {"title": "A", "paper": "B", "question": "C?", "hours": 1, "differs": ["D"], "sweep": sweep}
    study["published"] = [{"label": "dense", "method": "dense", "density": 1.0, "accuracy": 90.0}]
    (tables / "study.toml").write_text(tomli_w.dumps(study))


def vouch(folder: Path, name: str) -> None:
    """Write the checksum of a file as it is now, as one who forges it would."""
    path = folder / "checksums.json"
    found = json.loads(path.read_bytes()) if path.exists() else {}
    found[name] = [hashlib.sha256((folder / name).read_bytes()).hexdigest()]
    path.write_text(json.dumps(found))


def bytes_changed(data: bytes, random: np.random.Generator) -> bytes:
    change = [hostile.truncated, hostile.flipped, hostile.spliced, hostile.garbage][random.integers(4)]
    return change(data, random) if data else b"x"


def appended(data: bytes, random: np.random.Generator) -> bytes:
    return data + [b"\0", b"x", data, b"\n", random.bytes(50)][random.integers(5)]


def otherwise_written(data: bytes, random: np.random.Generator) -> bytes:
    """Another encoding, other line ends, or a text that is none."""
    if random.integers(2):
        return STRANGE_TEXTS[random.integers(len(STRANGE_TEXTS))]
    text = data.decode("utf-8", "replace")
    return [text.encode("utf-16"), b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r"), data.replace(b'"', b"\0")][
        random.integers(4)
    ]


def content_changed(data: bytes, random: np.random.Generator, name: str) -> bytes:
    """One to three values that are other, wrong, missing or elsewhere, in a file that can be read."""
    times = random.integers(1, 4)
    if name.endswith(".csv"):
        rows = [line.split(",") for line in data.decode().splitlines()]
        for _ in range(times):
            row = rows[random.integers(len(rows))]
            place = random.integers(len(row))
            row[place] = str(EVIL[random.integers(len(EVIL))]) if random.integers(3) else rows[0][place]
        return "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    if name.endswith(".jsonl"):
        values = [json.loads(line) for line in data.decode().splitlines()]
    else:
        values = [tomllib.loads(data.decode()) if name.endswith(".toml") else json.loads(data)]
    for _ in range(times):
        hostile.mutate(values[random.integers(len(values))], random, EVIL)
    if name.endswith(".toml"):
        with contextlib.suppress(Exception):  # some values have no form in TOML
            return tomli_w.dumps(values[0]).encode("utf-8", "surrogatepass")
        return data + b'\nx = "y"\n'
    if random.integers(10) == 0 and isinstance(values[0], dict) and values[0]:
        key = next(iter(values[0]))
        text = json.dumps(values[0])
        return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(values[0][key])}}}".encode()
    return "\n".join(json.dumps(value) for value in values).encode()


class Evil:
    """What a pickle runs where nobody forbids it."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.place,)


def pickled_otherwise(data: bytes, random: np.random.Generator, place: str) -> bytes:
    """A file of `torch.save` with other content: values changed, code, a buffer, compressed parts, changed opcodes."""
    kind = random.integers(6)
    plain = torch.load(io.BytesIO(data), weights_only=True)
    if kind == 0:
        for _ in range(random.integers(1, 4)):
            hostile.mutate(plain, random, [*EVIL, torch.zeros(2), torch.zeros(1).expand(10**12), {"steps": -1}])
        return saved(plain)
    if kind == 1:
        return saved({**plain, "start": Evil(place)})
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            content = bytearray(old.read(member))
            if member.filename.endswith("data.pkl"):
                if kind == 2:
                    content = bytearray(b"\x80\x02cbuiltins\nbytearray\nM\x00\x40\x85R.")
                for _ in range(random.integers(1, 4) if kind in (3, 4) else 0):
                    content[random.integers(len(content))] = random.integers(256)
            how = zipfile.ZIP_DEFLATED if kind == 5 else zipfile.ZIP_STORED
            new.writestr(member.filename, bytes(content), how)
    return out.getvalue()


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def make_hostile(kind: Kind, data: bytes, random: np.random.Generator, place: str) -> tuple[bytes, bool]:
    """A hostile file, and whether its own seal is right."""
    forged = bool(random.integers(4))
    if kind.name.endswith(".pt"):
        inner = data.partition(b"\n")[2] if kind.sealed else data
        change = [pickled_otherwise, bytes_changed, appended][random.integers(3)]
        made = partial(change, place=place)(inner, random) if change is pickled_otherwise else change(inner, random)
        sealed = seal(made) if forged else data.partition(b"\n")[0] + b"\n" + made
        return (sealed, forged) if kind.sealed else (made, False)
    if kind.name.endswith(".safetensors"):
        changes = [bytes_changed, appended, hostile.lying, header_changed]
        return changes[random.integers(4)](data, random), False
    change = random.integers(6)
    if change < 3:
        return content_changed(data, random, kind.name), forged
    return [bytes_changed, appended, otherwise_written][change - 3](data, random), forged


def header_changed(data: bytes, random: np.random.Generator) -> bytes:
    """Values of a safetensors header, or of the description of a compacted network in it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    described = json.loads(header["__metadata__"]["compact"])
    for _ in range(random.integers(1, 4)):
        hostile.mutate(described if random.integers(2) else header, random, EVIL)
    with contextlib.suppress(KeyError, TypeError):
        header["__metadata__"]["compact"] = json.dumps(described)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and when it was written."""
    found = {}
    for place, _, files in os.walk(root):
        for name in files:
            entry = os.stat(os.path.join(place, name))
            found[os.path.join(place, name)] = (entry.st_size, entry.st_mtime_ns)
        found[place] = (0, 0)
    return found


class Trial:
    """The folders, what is in them, and the most that any hostile file has cost."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_bases(root)
        self.evil = str(root / "evil")
        # What is read for the first time imports what it needs.
        own_methods = [find_method(name) for name in method_names()]
        assert own_methods and not name_elsewhere("no network")
        self.right = {kind: kind.read(root / kind.base) for kind in KINDS}
        self.longest, self.largest = (0.0, ""), (0, "")

    def try_file(self, number: int, seed: int) -> str:
        """Make hostile file `number`, read it as commands do, and say what became of it.

        Raises:
            AssertionError: it did harm.
        """
        random = np.random.default_rng([seed, number])
        kind = KINDS[number % len(KINDS)]
        folder = self.root / kind.base
        path, sums = folder / kind.name, folder / "checksums.json"
        data, vouched = path.read_bytes(), sums.read_bytes() if sums.exists() else None
        made, forged = make_hostile(kind, data, random, self.evil)
        path.write_bytes(made)
        if forged and kind.summed:
            vouch(folder, kind.name)
        about = f"{kind.base}/{kind.name}, file {number} of seed {seed}"
        try:
            outcome = self._read(kind, folder, about, len(made), number % TRACED == 0)
            if outcome == "read" and not (forged or made == data) and (kind.summed or kind.sealed):
                outcome = "unharmed"
        finally:
            path.write_bytes(data)
            if vouched is not None:
                sums.write_bytes(vouched)
        return f"{kind.name}: {outcome}"

    def _read(self, kind: Kind, folder: Path, about: str, size: int, traced: bool) -> str:
        before, modules = snapshot(self.root), set(sys.modules)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if traced:
            tracemalloc.start()
        began, outcome, found = time.process_time(), "read", None
        try:
            found = kind.read(folder)
        except ERRORS as error:
            outcome, told = "refused", error.problems if isinstance(error, RequestError) else [str(error)]
            assert all("\n" not in line for line in told), f"{about}: {told}"
            assert kind.typed or any(folder.name in line or kind.name in line for line in told), (
                f"{about} is not named: {told}"
            )
        except Exception as error:
            raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error
        took = time.process_time() - began
        used = max(
            tracemalloc.get_traced_memory()[1], 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
        )
        tracemalloc.stop()
        self.longest, self.largest = max(self.longest, (took, about)), max(self.largest, (used, about))
        assert took < SECONDS, f"{about}: {took:.2f} s"
        assert used < MEMORY + 10 * size, f"{about}: {used:,} bytes"
        # Parts of PyTorch that its own reader of states looks into when it meets what it does not know.
        imported = {name for name in set(sys.modules) - modules if not name.startswith("torch.")}
        assert not imported, f"{about}: imported {imported}"
        assert snapshot(self.root) == before, f"{about}: files have changed"
        stale = kind.summed or kind.sealed
        if outcome == "read" and stale and not self._vouches(kind, folder):
            assert repr(found) == repr(self.right[kind]), f"{about}: another content, in silence"
        return outcome

    def _vouches(self, kind: Kind, folder: Path) -> bool:
        """Whether the checksum of a changed file fits."""
        data = (folder / kind.name).read_bytes()
        if kind.sealed:
            line, _, state = data.partition(b"\n")
            return line.endswith(hashlib.sha256(state).hexdigest().encode())
        return hashlib.sha256(data).hexdigest() in json.loads((folder / "checksums.json").read_bytes())[kind.name]


def try_files(
    root: Path, count: int, seed: int = 0, each: Callable[[], object] = lambda: None, first: int = 0
) -> tuple[Counter[str], Trial]:
    """What became of `count` hostile files, in folders below `root`."""
    trial, found = Trial(root), Counter[str]()
    for number in range(first, first + count):
        found[trial.try_file(number, seed)] += 1
        each()
    assert not Path(trial.evil).exists()
    return found, trial
