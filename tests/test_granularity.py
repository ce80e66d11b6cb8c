"""Units and back, against loops over every single weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, perceptron
from torch import nn

import supermask
from supermask import NM, Block, Channel, Filter, Weight
from supermask.choosing.granularity import GRANULARITIES, find_granularity
from supermask.masks.targets import Target, Targets, find_targets

pytestmark = pytest.mark.quick

Place = tuple[int, ...]


def filter_of(place: Place, shape: Place, axis: int, groups: int) -> int:
    return place[axis]


def channel_of(place: Place, shape: Place, axis: int, groups: int) -> int:
    if axis == 1:  # (inputs, outputs / groups)
        return place[0]
    return place[0] // (shape[0] // groups) * shape[1] + place[1]


def block_of(sizes: Place) -> Callable[..., int]:
    def unit(place: Place, shape: Place, axis: int, groups: int) -> int:
        number = 0
        for side, (at, length) in zip((*sizes, *[1] * len(shape)), zip(place, shape, strict=True), strict=False):
            number = number * (length // side) + at // side
        return number

    return unit


def slow_units(name: str, shape: Place, axis: int = 0, groups: int = 1) -> np.ndarray:
    """The number of the unit that each weight is in, in the order in which ties are settled."""
    if name == "weight" or name[0].isdigit():
        return np.arange(math.prod(shape)).reshape(shape)
    table = {"filter": filter_of, "channel": channel_of}
    rule = table.get(name) or block_of(tuple(map(int, name.removeprefix("block:").split("x"))))
    units = np.zeros(shape, dtype=int)
    for place in itertools.product(*map(range, shape)):
        units[place] = rule(place, shape, axis, groups)
    return units


def slow_sums(units: np.ndarray, scores: np.ndarray) -> np.ndarray:
    sums = np.zeros(units.max() + 1)
    for unit, score in zip(units.flat, scores.flat, strict=True):
        sums[unit] += score
    return sums


LAYERS = {
    "linear": lambda: nn.Linear(8, 12),
    "conv": lambda: nn.Conv2d(4, 8, 3),
    "conv1d": lambda: nn.Conv1d(8, 4, 2),
    "conv3d": lambda: nn.Conv3d(4, 4, (1, 2, 2)),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 16, 3, groups=8),
    "transposed": lambda: nn.ConvTranspose2d(8, 4, 2),
    "grouped transposed": lambda: nn.ConvTranspose2d(8, 12, 2, groups=2),
}
NAMES = [*GRANULARITIES, "block:2", "block:2x2", "block:4x2x1", "block:1x4"]


REFUSED = {
    "filter": ["grouped transposed"],
    "block:1x4": ["depthwise", "grouped transposed"],
    "block:2x2": ["depthwise"],
    "block:4x2x1": ["depthwise", "linear"],
}


def one_target(layer: nn.Module) -> tuple[Targets, Target]:
    targets = find_targets(layer)
    return Targets(dict(targets), {}), targets["weight"]  # of a lone linear layer the outputs may be dropped


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_units_equal_those_counted_weight_by_weight(name, layer):
    targets, target = one_target(LAYERS[layer]())
    shape = tuple(target.parameter.shape)
    scores = torch.randint(-9, 9, shape).float()
    if layer in REFUSED.get(name, ()):
        with pytest.raises(ValueError, match=r"weight .*(grouped transposed|cannot be cut)"):
            find_granularity(name).reduce({"weight": scores}, targets)
        return
    expected = slow_units(name, shape, target.output_axis, target.groups)
    sums = slow_sums(expected, scores.numpy())
    found = find_granularity(name).reduce({"weight": scores}, targets)["weight"]
    assert found.reshape(-1).tolist() == sums.tolist()
    kept = torch.rand(found.shape) < 0.5
    mask = find_granularity(name).expand({"weight": kept}, targets)["weight"]
    assert mask.dtype == torch.bool
    assert np.array_equal(mask.numpy(), kept.reshape(-1).numpy()[expected])


def test_every_granularity_of_the_table_is_compared():
    for name in GRANULARITIES:
        assert name == "weight" or name in ("filter", "channel"), f"write the slow units of {name}"


@pytest.mark.parametrize("layer", ["conv", "grouped", "transposed", "grouped transposed", "linear"])
def test_a_filter_is_what_makes_its_output_zero_and_a_channel_what_an_input_is_read_by(layer):
    module = LAYERS[layer]()
    targets, _ = one_target(module)
    x = torch.rand(
        2, 8 if "transposed" in layer or layer in ("grouped", "linear") else 4, *[5] * (layer != "linear") * 2
    )
    with torch.no_grad():
        nn.init.uniform_(module.weight, 0.5, 1)
        module.bias.zero_()
        whole = module.weight.clone()
        for shape, drop in [(Channel(), 3), (Filter(), 2)][: 1 if layer == "grouped transposed" else 2]:
            units = shape.reduce({"weight": whole}, targets)["weight"]
            kept = torch.arange(len(units)) != drop
            module.weight.copy_(whole * shape.expand({"weight": kept}, targets)["weight"])
            y = module(x)
            if isinstance(shape, Filter):
                alive = y.transpose(0, 1).flatten(1).any(1)
                assert alive.tolist() == kept.tolist()
            else:
                other = x.clone()
                other[:, drop] += 1
                assert torch.equal(module(other), y)
                other[:, drop - 1] += 1
                assert not torch.equal(module(other), y)


PATTERNS = {
    "o i h w -> o i": ({}, lambda p, s: p[0] * s[1] + p[1]),
    "o i h w -> h w": ({}, lambda p, s: p[2] * s[3] + p[3]),
    "o i ... -> i o": ({}, lambda p, s: p[1] * s[0] + p[0]),
    "o ... -> o": ({}, lambda p, s: p[0]),
    "o i h w -> ": ({}, lambda p, s: 0),
    "(o a) (i b) h w -> o i": ({"a": 4, "b": 2}, lambda p, s: p[0] // 4 * (s[1] // 2) + p[1] // 2),
    "(a o) i h w -> o": ({"a": 2}, lambda p, s: p[0] % (s[0] // 2)),
    "(o 2) i h w -> (o i)": ({}, lambda p, s: p[0] // 2 * s[1] + p[1]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_equal_the_rule_written_out(pattern):
    sizes, rule = PATTERNS[pattern]
    targets, target = one_target(nn.Conv2d(4, 8, 3))
    shape = tuple(target.parameter.shape)
    scores = torch.randint(-9, 9, shape).float()
    units = np.zeros(shape, dtype=int)
    for place in itertools.product(*map(range, shape)):
        units[place] = rule(place, shape)
    block = Block(pattern, **sizes)
    found = block.reduce({"weight": scores}, targets)["weight"]
    assert found.reshape(-1).tolist() == slow_sums(units, scores.numpy()).tolist()
    kept = torch.rand(found.shape) < 0.5
    mask = block.expand({"weight": kept}, targets)["weight"]
    assert np.array_equal(mask.numpy(), kept.reshape(-1).numpy()[units])


def slow_n_of_m(scores: np.ndarray, n: int, m: int, axis: int) -> np.ndarray:
    """Sort each run of m inputs of an output, at each position of the kernel, and keep the first n."""
    moved = np.moveaxis(scores, axis, -1)
    mask = np.zeros(moved.shape, dtype=bool)
    for place in itertools.product(*map(range, moved.shape[:-1])):
        for start in range(0, moved.shape[-1], m):
            run = sorted(range(start, start + m), key=lambda i: (-moved[(*place, i)], i))
            for i in run[:n]:
                mask[(*place, i)] = True
    return np.moveaxis(mask, -1, axis)


@given(
    st.sampled_from(["linear", "conv", "conv1d", "grouped", "transposed", "grouped transposed"]),
    st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4)]),
    st.integers(1, 9),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_n_of_m_equals_the_sort_of_every_run(layer, pair, values, seed):
    module = LAYERS[layer]()
    weight = module.weight
    with torch.no_grad():
        weight.copy_(torch.randint(-values, values + 1, weight.shape, generator=torch.Generator().manual_seed(seed)))
    n, m = pair
    mask = supermask.prune(module, n / m, granularity=f"{n}:{m}")["weight"]
    axis = 0 if "transposed" in layer else 1
    assert np.array_equal(mask.numpy(), slow_n_of_m(weight.detach().abs().numpy(), n, m, axis))


def test_n_of_m_again_only_shrinks_and_refuses_what_it_cannot_keep():
    module = nn.Linear(16, 6)
    half = supermask.prune(module, 0.5, granularity="2:4")
    quarter = supermask.prune(module, 0.25, granularity="1:4", previous=half)
    assert quarter.within(half)
    assert quarter["weight"].reshape(6, 4, 4).sum(-1).eq(1).all()
    few = supermask.prune(module, 0.1)
    with pytest.raises(ValueError, match=r"masks only shrink.*weight keeps 10 and density 0\.5 asks for 48"):
        supermask.prune(module, 0.5, granularity="2:4", previous=few)
    uneven = supermask.Masks({"weight": torch.arange(96).reshape(6, 16) < 60})
    with pytest.raises(ValueError, match="weight has groups of 4 of which fewer than 2 were kept before"):
        supermask.prune(module, 0.5, granularity="2:4", previous=uneven)


def attempt(model: nn.Module, name: str) -> tuple[supermask.Masks, str]:
    try:
        return supermask.prune(model, 0.5, granularity=name), ""
    except ValueError as error:
        return supermask.Masks({}), str(error)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [*GRANULARITIES, "block:2x2", "2:4", "1:2"])
def test_units_are_dropped_whole_in_any_network(name, network):
    model = NETWORKS[network][0]()
    targets = find_targets(model)
    masks, refusal = attempt(model, name)
    if refusal:
        assert any(target in refusal for target in targets), refusal
    for key, mask in masks.items():
        assert mask.shape == targets[key].parameter.shape
        if name[0].isdigit():
            n, m = map(int, name.split(":"))
            runs = mask.movedim(1 - targets[key].output_axis, -1).reshape(-1, m)
            assert (runs.sum(1) == n).all()
            continue
        units = slow_units(name, tuple(mask.shape), targets[key].output_axis, targets[key].groups)
        kept = slow_sums(units, mask.numpy())
        assert set(kept) <= {0.0, *np.bincount(units.ravel()).astype(float)}
    if name == "filter" and masks:
        assert masks[targets.output].all(), "the network's outputs stay"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("filtr", "unknown granularity 'filtr'; did you mean 'filter'"),
        ("block", "did you mean 'block:4x4'"),
        ("4:4", r"N:M keeps N of M weights with 1 <= N < M, got 4:4"),
        ("0:4", "got 0:4"),
        ("block:0x4", r"a block is sizes of at least 1 or one einops pattern, got \(0, 4\)"),
        (
            "block:5x5",
            r"0\.weight of shape \[9, 12\] cannot be cut.*; 2\.weight of shape \[7, 9\].*exclude what has no",
        ),
        (
            "2:4",
            r"2\.weight of shape \[7, 9\] reads 9 inputs, not a multiple of 4; 4\.weight of shape \[3, 7\] reads 7",
        ),
        ("block:1x1x1", r"3 sizes for 2 dimensions"),
    ],
)
def test_shapes_that_cannot_be(name, message):
    with pytest.raises(ValueError, match=message):
        supermask.prune(perceptron(), 0.5, granularity=name)


def test_patterns_that_are_none():
    for pattern in ("o i", "o -> i -> o"):
        with pytest.raises(
            ValueError, match=f"'{pattern}' is no pattern: expected axes of a weight -> axes of its units"
        ):
            Block(pattern)
    for bad in [lambda: Block("o i -> o", 3), lambda: Block(2, 0), lambda: Block(1.5)]:
        with pytest.raises(ValueError, match="a block is sizes of at least 1 or one einops pattern"):
            bad()
    for pattern, sizes in {
        "o i h w -> o": {},
        "(o a) i -> o": {},
        "(o a) i -> o i": {"a": 5},
        "o i -> o j": {},
    }.items():
        with pytest.raises(ValueError, match=r"0\.weight of shape \[9, 12\] cannot be cut into blocks"):
            supermask.prune(perceptron(), 0.5, granularity=Block(pattern, **sizes))


def test_what_has_no_filters():
    model = perceptron()
    for name in ("filter", "channel"):
        with pytest.raises(ValueError, match=r"0\.bias of shape \[9\] has no .*exclude what has no such units"):
            supermask.prune(model, 0.5, granularity=name, include="*")
    with pytest.raises(ValueError, match="no target has units of this shape: weight"):
        supermask.prune(nn.Linear(4, 3), 0.5, granularity="filter")
    grouped = nn.ConvTranspose2d(6, 4, 2, groups=2)  # three inputs a group: a run of two would read two groups
    with pytest.raises(ValueError, match=r"weight of shape \[6, 2, 2, 2\] reads 3 inputs, not a multiple of 2"):
        supermask.prune(grouped, 0.5, granularity=NM(1, 2))


def test_objects_are_taken_as_they_are():
    model = perceptron()
    for shape, name in [(Weight(), "weight"), (Filter(), "filter"), (Block(1, 1), "block:1x1")]:
        assert supermask.prune(model, 0.5, granularity=shape) == supermask.prune(model, 0.5, granularity=name)
    assert NM(2, 4).density == 0.5
