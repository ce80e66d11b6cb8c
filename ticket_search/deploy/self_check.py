"""Whether this package is right and fast on a device: a table of checks, to be sent with a report.

Each check stands by itself: one that fails is a row, never the end. They come in the order of what they tell, and none
begins once the time is over. A CPU runs the same code, but for what only a GPU has.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import supermask
from supermask.selection.top_k import top_k
from supermask.selection.tracking import Chooser

from ..contract.flags import Config
from ..contract.keyed import Keyed
from ..data.augmentation import Augmentation, augment, draw
from ..models.conv import conv2, conv6
from ..models.lenet import lenet_300_100
from ..models.resnet import resnet18
from ..running.search import search
from ..runs.experiment import bf16_is_native, exact_arithmetic
from ..training.precision import Arithmetic, compile_whole

_Shape = tuple[int, ...]
_GRAY, _COLOUR = (1, 28, 28), (3, 32, 32)
# Losses of a device may differ from a CPU's by as much, relatively: sums are added in another order.
_GAP = 2e-3
# A step of edge-popup may take so many times as long as a dense one.
_RATIO = 1.05
# As a search computes: fp32 that is fp32, and no algorithm with an order of its own.
_EXACT = Config(method="dense").model_copy(update={"device": "cuda" if torch.cuda.is_available() else "cpu"})


@dataclass(frozen=True)
class Row(Keyed):
    """One finding: of which check, what was looked at, its value, and the verdict.

    verdict: `ok`, `failed`, `slow` where a time is above what it should be, `told` where there is no right or wrong, or
    `skipped`.
    """

    check: str
    what: str
    value: str
    verdict: Literal["ok", "failed", "slow", "told", "skipped"]

    def as_dict(self) -> dict[str, str]:
        """The finding as plain values."""
        return asdict(self)


@dataclass
class _Place:
    """The device that is checked, whether in short, and where runs may be written."""

    device: torch.device
    quick: bool
    folder: Path
    rows: list[Row] = field(default_factory=list)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)


def check_device(device: str, *, quick: bool = False, seconds: float = 420.0) -> Iterator[Row]:
    """Check a device, one row after the other.

    Args:
        device: `cpu` or `cuda`.
        quick: of all that takes long only a little, so that it is over in a minute; times then say nothing.
        seconds: no check begins after so many.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = _Place(torch.device(device), quick, Path(folder))
        for check in _CHECKS:
            name = check.__name__.removeprefix("_").replace("_", " ")
            if time.monotonic() - begun > seconds:
                yield Row(name, "no time is left", "", "skipped")
                continue
            try:
                for what, value, verdict in check(place):
                    yield Row(name, what, value, verdict)
            # Whatever goes wrong is what one wants to know.
            except Exception as error:
                first = (str(error).splitlines() or [""])[0][:200]
                yield Row(name, "the check itself", f"{type(error).__name__}: {first}", "failed")


_Told = tuple[str, str, Literal["ok", "failed", "slow", "told", "skipped"]]


def _selection(place: _Place) -> Iterator[_Told]:
    """Exact masks equal those of the CPU, and cost no wait."""
    draw_numbers = torch.Generator().manual_seed(0)
    wrong = of = 0
    for size in (7, 5000, 65_536) if place.quick else (7, 5000, 65_536, 300_001):
        normal = torch.randn(size, generator=draw_numbers)
        for keys in (normal, (normal * 2).round(), torch.zeros(size), normal * 1e-40):
            for k in {1, size // 3, size // 2, size - 1}:
                (found,) = Chooser([k]).choose([keys.to(place.device)])
                wrong, of = wrong + (not torch.equal(top_k(keys.abs(), k), found.cpu())), of + 1
    yield f"{of} masks equal those of the CPU, of keys with ties too", f"{wrong} wrong", _verdict(not wrong)
    network = lenet_300_100() if place.quick else resnet18()
    sizes = [target.size for target in supermask.find_targets(network).values()]
    scores = [torch.randn(size, device=place.device) for size in sizes]
    chooser = Chooser([size // 2 for size in sizes])
    chooser.choose(scores)
    with _no_waits(place):
        chooser.choose(scores)
    yield "choosing waits for nothing", "", "ok" if place.is_gpu else "skipped"
    took = _time(place, lambda: chooser.choose(scores))
    yield f"choosing half of {sum(sizes):,} scores in {len(sizes)} tensors", f"{1e3 * took:.3f} ms", "told"


def _steps_without_waits(place: _Place) -> Iterator[_Told]:
    """No training step waits for the host, and no augmented batch."""
    if not place.is_gpu:
        yield "the host waits for nothing", "", "skipped"
        return
    for kind in ("dense", "edge-popup", "hold", "gates"):
        step = _stepper(place, lenet_300_100, _GRAY, kind, 32)
        step()
        step()
        yield f"a step of {kind}", *_tried(lambda step=step: _without_waits(place, step))  # type: ignore[misc]
    x, augmentation = torch.zeros(16, *_COLOUR, device=place.device), Augmentation(4, True)
    drawn = draw(augmentation, 16, 0, ["0/0"])
    assert drawn is not None
    black, there = torch.zeros(3, 1, 1, device=place.device), drawn[0].to(place.device)
    yield "an augmented batch", *_tried(lambda: _without_waits(place, lambda: augment(x, augmentation, black, there)))


def _agreement(place: _Place) -> Iterator[_Told]:
    """Ten steps in fp32 without TF32 give the losses of the CPU."""
    networks: list[tuple[str, Callable[..., nn.Module], _Shape, str]] = [
        ("lenet-300-100", lenet_300_100, _GRAY, "edge-popup"), ("conv2", conv2, (3, 16, 16), "edge-popup"),
        ("lenet-300-100", lenet_300_100, _GRAY, "hold"),
    ]  # fmt: skip
    here = _Place(torch.device("cpu"), place.quick, place.folder)
    for name, factory, shape, kind in networks:
        with exact_arithmetic(_EXACT):
            gap = _gap(*(_stepper(where, factory, shape, kind, 64) for where in (here, place)))
        yield f"10 steps of {name}, {kind}", f"the losses differ by {gap:.1e} of themselves", _verdict(gap < _GAP)


def _graphs(place: _Place) -> Iterator[_Told]:
    """Steps that are CUDA graphs give the losses of those that are not, of a second model of the same kind too."""
    if not place.is_gpu:
        yield "10 steps as CUDA graphs", "", "skipped"
        return
    kept = []
    for kind in ("dense", "edge-popup", "edge-popup", "hold", "gates"):
        with exact_arithmetic(_EXACT):
            plain, graphs = (_stepper(place, conv2, (3, 16, 16), kind, 64, mode, False) for mode in ("eager", "graphs"))
            gap = _gap(plain, graphs)
        kept.append(graphs)  # models of the same kind share what is compiled while they live
        yield f"10 steps of conv2, {kind}", f"the losses differ by {gap:.1e} of themselves", _verdict(gap < _GAP)
    flags: dict[str, Any] = {"compile": True, "accumulate": 2, "clip": 1.0, "precision": "bf16"}
    for method in ("edge-popup", "gradual"):
        given: dict[str, Any] = {"data": "digits", "progress": False, "device": "cuda", "epochs": 2, "train_size": 640}
        run = search(method, "conv2", runs=place.folder / f"graphs-{method}", **given, **flags)
        yield f"{method} {_told(flags)}", f"test {run.summary['test_metric']:.1f} %", "ok"


def _gap(one: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor]) -> float:
    """By how much of themselves the losses of ten steps differ."""
    pairs = [(float(one()), float(other())) for _ in range(10)]
    return max(abs(a - b) / max(1e-6, abs(a)) for a, b in pairs)


_SEARCHES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("edge-popup", {}), ("edge-popup", {"allocation": "global"}), ("imp", {"density": 0.3, "rewind": "3it"}),
    ("gradual", {"density": 0.3}), ("rigl", {"density": 0.3}), ("gates", {"density": 0.3}), ("iterand", {}),
    ("snip", {"density": 0.3}), ("synflow", {"density": 0.3}), ("grasp", {"density": 0.3}),
    ("filters", {"density": 0.5}),
)  # fmt: skip


def _searches(place: _Place) -> Iterator[_Told]:
    """Searches run on the device, and the same one twice gives the same bytes."""
    given: dict[str, Any] = {"data": "digits", "progress": False, "device": place.device.type}
    given |= {"epochs": 2, "train_size": 640}
    for number, (method, flags) in enumerate(_SEARCHES):
        run = search(method, "lenet-300-100", runs=place.folder / f"{number}", **given, **flags)
        yield f"{method} {_told(flags)}".strip(), f"test {run.summary['test_metric']:.1f} %", "ok"
    twice: list[tuple[str, dict[str, Any]]] = [("conv2", {}), ("conv2", {"precision": "bf16"})]
    for number, (network, flags) in enumerate(twice):
        tickets = [
            (search("edge-popup", network, runs=place.folder / f"{number}{letter}", **given, **flags).path)
            for letter in "ab"
        ]
        one, other = ((path / "ticket.safetensors").read_bytes() for path in tickets)
        yield f"edge-popup {network} {_told(flags)} twice".replace("  ", " "), "the same bytes", _verdict(one == other)


def _speed_of_steps(place: _Place) -> Iterator[_Told]:
    """A step of edge-popup beside a dense one: bf16 where that is native, compiled on a GPU."""
    networks: list[tuple[str, Callable[..., nn.Module], _Shape]] = [("conv2", conv2, (3, 8, 8))]
    if not place.quick:
        networks = [("conv6", conv6, _COLOUR), ("resnet18", resnet18, _COLOUR)]
    for name, factory, shape in networks:
        for batch in (8,) if place.quick else (128, 512):
            for mode in ("eager", "compiled", "graphs") if place.is_gpu else ("eager",):
                torch.compiler.reset()
                dense, popup = (
                    _time(place, _stepper(place, factory, shape, kind, batch, mode)) for kind in ("dense", "edge-popup")
                )
                told = f"dense {1e3 * dense:.2f} ms, edge-popup {1e3 * popup:.2f} ms, {batch / popup:,.0f} images/s"
                verdict: Literal["ok", "slow", "told"] = "ok" if popup / dense <= _RATIO else "slow"
                if mode == "eager":
                    verdict = "told"
                yield f"{name}, batch {batch}, {mode}", f"{popup / dense:.3f} ({told})", verdict


def _speed_of_a_search(place: _Place) -> Iterator[_Told]:
    """Images a second of a search beside those of a bare loop over the same tensors."""
    size, batch = (160, 16) if place.quick else (20_000, 256)
    numbers = np.random.default_rng(0)
    images = {n: (numbers.integers(0, 256, (n, *_COLOUR), dtype=np.uint8), np.arange(n) % 10) for n in (size, 200)}
    data = {"train": images[size], "test": images[200]}
    factory, name = (conv2, "conv2") if place.quick else (conv6, "conv6")
    mode = "compiled" if place.is_gpu else "eager"
    bare = batch / _time(place, _stepper(place, factory, _COLOUR, "edge-popup", batch, mode))
    kinds: tuple[dict[str, Any], ...] = ({}, {"crop": 4, "flip": True})
    for flags in kinds:
        run = search(
            "edge-popup", name, data, runs=place.folder / f"speed{len(flags)}", progress=False, batch_size=batch,
            device=place.device.type, epochs=1 if place.quick else 6, compile=place.is_gpu, lr=0.01, **flags,
        )  # fmt: skip
        logged = [row["speed/samples-per-second"] for row in run.metrics if "speed/samples-per-second" in row][-1]
        value = f"{logged / bare:.2f} of a bare loop's {bare:,.0f} images/s"
        yield f"{name}, batch {batch} {_told(flags)}".strip(), value, "told"


def _epoch_of_conv4(place: _Place) -> Iterator[_Told]:
    """An epoch of conv4 over as many images as Fashion-MNIST has, compiled, in a second."""
    if not place.is_gpu:
        yield "60,000 images of 28 x 28", "", "skipped"
        return
    numbers = np.random.default_rng(0)
    images = {n: (numbers.integers(0, 256, (n, *_GRAY), dtype=np.uint8), np.arange(n) % 10) for n in (60_000, 1000)}
    for method in ("dense", "edge-popup"):
        run = search(
            method, "conv4", {"train": images[60_000], "test": images[1000]}, runs=place.folder / f"conv4-{method}",
            progress=False, device=place.device.type, epochs=4, batch_size=512, compile=True, lr=0.01,
        )  # fmt: skip
        speeds = [row["speed/samples-per-second"] for row in run.metrics if "speed/samples-per-second" in row]
        took = run.setup.data.train_size / speeds[-1]
        yield f"conv4, {method}, batch 512: the last epoch", f"{took:.2f} s", "ok" if took < 1 else "slow"


# A short search in a process of its own, by its seed.
_RUN = """
import sys
import numpy as np
import ticket_search
numbers = np.random.default_rng(0)
data = {part: (numbers.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8), np.arange(n) % 10)
        for part, n in (("train", 20_000), ("test", 500))}
flags = dict(progress=False, device="cuda", epochs=4, seed=int(sys.argv[1]), threads=1)
ticket_search.search("edge-popup", "lenet-300-100", data, runs=sys.argv[2], **flags)
"""


def _packing(place: _Place) -> Iterator[_Told]:
    """Small searches at the same time on one GPU, each in a process of its own."""
    if not place.is_gpu:
        yield "processes on one GPU", "", "skipped"
        return
    for number in (1, 4, 8, 16):
        began = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, "-c", _RUN, str(seed), str(place.folder / f"{number}-at-once-{seed}")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for seed in range(number)
        ]
        try:
            said = [process.communicate(timeout=180)[1].decode() for process in running]
        finally:
            for process in running:
                process.kill()
        took = time.perf_counter() - began
        failed = [text.strip().splitlines()[-1:] for text, each in zip(said, running, strict=True) if each.returncode]
        value = f"{took:.1f} s, {60 * number / took:.1f} runs a minute" if not failed else str(failed[0])[:150]
        yield f"{number} processes, start and all", value, "told" if not failed else "failed"


_CHECKS: tuple[Callable[[_Place], Iterator[_Told]], ...] = (
    _selection, _steps_without_waits, _agreement, _graphs, _searches, _speed_of_steps, _speed_of_a_search,
    _epoch_of_conv4, _packing,
)  # fmt: skip


def _told(flags: dict[str, Any]) -> str:
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in flags.items())


def _verdict(good: bool) -> Literal["ok", "failed"]:
    return "ok" if good else "failed"


def _tried(work: Callable[[], Any]) -> tuple[str, Literal["ok", "failed"]]:
    try:
        work()
    except RuntimeError as error:
        return str(error).splitlines()[0][:120], "failed"
    return "nothing", "ok"


@contextlib.contextmanager
def _no_waits(place: _Place) -> Iterator[None]:
    """PyTorch raises a RuntimeError where the host waits for a GPU."""
    if not place.is_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _without_waits(place: _Place, work: Callable[[], Any]) -> None:
    with _no_waits(place):
        work()


def _stepper(
    place: _Place, factory: Callable[..., nn.Module], shape: _Shape, kind: str, batch: int, mode: str = "eager",
    fast: bool | None = None,
) -> Callable[[], torch.Tensor]:  # fmt: skip
    """A training step of a network: dense, or under masks that are held or learned. Compiled it is in bf16, if fast."""
    torch.manual_seed(0)
    if fast is None:
        fast = mode != "eager" and bf16_is_native(place.device.type)
    network = factory(input_shape=shape, classes=10).to(place.device)
    if kind == "edge-popup":
        supermask.learn(network, 0.5)
    elif kind == "gates":
        supermask.learn(network, 0.5, program="hard-concrete", weights="keep")
    elif kind == "hold":
        supermask.hold(network, supermask.prune(network, 0.2))
    if fast:  # after the masks, as a search does
        network.to(memory_format=torch.channels_last)
    arithmetic, numbers = Arithmetic(place.device.type, fast, fast), torch.Generator().manual_seed(0)
    x = arithmetic.lay_out(torch.randn(batch, *shape, generator=numbers).to(place.device))
    y = torch.randint(10, (batch,), generator=numbers).to(place.device)
    forward: Callable[[Any], Any] = network
    if mode != "eager":
        forward = compile_whole(network, graphs=mode == "graphs")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with arithmetic.forward():
            outputs = forward(x)
        loss = nn.functional.cross_entropy(outputs.float(), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _time(place: _Place, step: Callable[[], Any], least: float = 0.4) -> float:
    """Median seconds of a step, of which so many are begun before one waits that the host is ahead."""
    for _ in range(1 if place.quick else 5):
        step()
    place.wait()
    began = time.perf_counter()
    step()
    place.wait()
    once = max(time.perf_counter() - began, 1e-6)
    number = max(1, min(60, int(0.05 / once)))
    turns = []
    for _ in range(1 if place.quick else max(3, min(9, int(least / (once * number))))):
        place.wait()
        began = time.perf_counter()
        for _ in range(number):
            step()
        place.wait()
        turns.append((time.perf_counter() - began) / number)
    return statistics.median(turns)
