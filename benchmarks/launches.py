"""How many kernels an eager training step launches on a GPU, counted without one: operations that are no views.

    python benchmarks/launches.py --json NOW.json --before results/launches-before.json --page results/gpu.md

Tensors say that they are on another device, so that the ways of a GPU are taken. Each operation on them is a launch, a
selection or a sort as many as PyTorch makes of it, and Triton's kernels are counted where they would be launched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import second_device
from second_device import SECOND

import supermask
from ticket_search.models.conv import conv6
from ticket_search.models.lenet import lenet_300_100
from ticket_search.models.resnet import resnet18

NETWORKS = {
    "lenet-300-100": (lenet_300_100, (1, 28, 28)),
    "conv6": (conv6, (3, 32, 32)),
    "resnet18": (resnet18, (3, 32, 32)),
}
KINDS = ("dense", "edge-popup", "edge-popup-2:4", "hold", "gates")
# Whose inputs are no multiple of four.
DENSE = {"lenet-300-100": None, "conv6": "features.0", "resnet18": "stem"}
# No kernel: what only looks at memory otherwise, or makes some.
VIEWS = (
    "view", "_unsafe_view", "expand", "t", "transpose", "permute", "slice", "select", "unbind", "split", "alias",
    "detach", "squeeze", "unsqueeze", "as_strided", "chunk", "unflatten", "_reshape_alias", "narrow", "movedim",
    "diagonal", "split_with_sizes", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "lift_fresh", "unfold", "is_same_size", "sym_size", "view_as", "numpy_T", "_local_scalar_dense", "set_",
)  # fmt: skip
# How many kernels one call of these is: a selection of several passes, a sort of several more. The k-th value was found
# by a sorted top-k on a GPU, and by what counts here on any other device.
SEVERAL = {"topk": 10, "kthvalue": 18, "sort": 8, "cumsum": 2}
# Selection of all layers by Triton: zeros, four passes of two kernels, equals, last, and what is kept.
OF_RADIX = 12


class Launches:
    """Counts operations on the second device."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.dispatch = second_device._dispatch

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Count one, and carry it out."""
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.counts[name] += SEVERAL.get(name, 1)
        return self.dispatch(func, args, kwargs)


def make_step(kind: str, network: str) -> Callable[[], None]:
    """A training step of SGD with momentum, on the second device."""
    factory, shape = NETWORKS[network]
    torch.manual_seed(0)
    net = factory(input_shape=shape, classes=10).to(SECOND)
    if kind == "edge-popup":
        supermask.learn(net, 0.5)
    elif kind == "edge-popup-2:4":
        supermask.learn(net, granularity="2:4", exclude=DENSE[network])
    elif kind == "gates":
        supermask.learn(net, 0.5, program="hard-concrete", weights="keep")
    elif kind == "hold":
        supermask.hold(net, supermask.prune(net, 0.2))
    x, y = torch.randn(4, *shape).to(SECOND), torch.arange(4).to(SECOND)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, momentum=0.9, foreach=False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x), y).backward()

    return step


def by_triton() -> Any:
    """As if Triton's kernels worked here: what they give is found otherwise, and counted as their launches."""
    try:
        from supermask.selection import gpu
    except ImportError:  # of an earlier version
        return mock.MagicMock()

    class Kernels:
        def mark(self, scores: Any, counts: Any, joint: bool) -> Any:
            with mock.patch.object(second_device, "_dispatch", COUNTER.dispatch):
                thresholds, last = gpu.plain_cut(scores, counts, joint)
                found = [gpu.compare(s, *e) for s, *e in zip(scores, thresholds.unbind(), last.unbind(), strict=True)]
            COUNTER.counts["triton"] += OF_RADIX
            return found

        def mask(self, scores: Any, weights: Any, counts: Any, joint: bool) -> Any:
            masks = self.mark(scores, counts, joint)
            with mock.patch.object(second_device, "_dispatch", COUNTER.dispatch):
                return [torch.where(m, w, w.new_zeros(())) for m, w in zip(masks, weights, strict=True)]

    kernels = Kernels()
    ranks = mock.patch.object(gpu, "ranks", lambda scores: all(s.dtype == torch.float32 for s in scores))
    found = mock.patch.object(gpu, "_kernels", return_value=kernels)
    return ranks, found


COUNTER = Launches()


def count(kind: str, network: str) -> Counter[str]:
    """The launches of the third step, without those of the optimizer, which are the same few for all."""
    with second_device.second_device():
        step = make_step(kind, network)
        patches = by_triton()
        with patches[0], patches[1]:
            step()
            step()
            COUNTER.counts.clear()
            with mock.patch.object(second_device, "_dispatch", COUNTER):
                step()
    return Counter(COUNTER.counts)


# Of an H100: seconds in which the host launches a kernel, and a graph goes from one to the next; bytes a second.
LAUNCH, NEXT, BYTES = 5e-6, 2e-6, 3.35e12

# The page, with places for what is counted.
PAGE = Path(__file__).with_suffix(".md")


def write_page(found: dict[str, dict[str, int]], before: dict[str, dict[str, int]], path: str) -> None:
    """Write the tables as a page."""
    rows, times = [], []
    for name, counts in found.items():
        network, kind = name.split()
        rows.append(f"| {network} | {kind} | {sum(before[name].values())} | {sum(counts.values())} |")
    for network, (factory, shape) in NETWORKS.items():
        size = sum(target.size for target in supermask.find_targets(factory(input_shape=shape, classes=10)).values())
        old, new = (sum(each[f"{network} edge-popup"].values()) for each in (before, found))
        graph = 32 * size / BYTES + OF_RADIX * NEXT
        cells = (f"{size:,}", f"{1e3 * old * LAUNCH:.2f} ms", f"{1e3 * new * LAUNCH:.2f} ms", f"{1e3 * graph:.2f} ms")
        times.append(f"| {network} | {' | '.join(cells)} |")
    text = PAGE.read_text().format(
        rows="\n".join(rows), times="\n".join(times), of_radix=OF_RADIX, launch=1e6 * LAUNCH, next=1e6 * NEXT
    )
    Path(path).write_text(text)


def main() -> None:
    """Print a table, and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--before", help="what an earlier version launched")
    parser.add_argument("--page")
    given = parser.parse_args()
    found = {}
    for network in NETWORKS:
        for kind in KINDS:
            counts = count(kind, network)
            found[f"{network} {kind}"] = dict(counts)
            print(f"{network:14} {kind:11} {counts.total():5}   {counts.most_common(6)}", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    if given.page:
        write_page(found, json.loads(Path(given.before).read_text()), given.page)


if __name__ == "__main__":
    main()
