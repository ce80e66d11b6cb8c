"""`prune` against a slow one that ranks single units in Python lists, and every combination of its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Residual, perceptron, start_of
from products import combine_pairs
from test_allocation import SLOW as SLOW_ALLOCATIONS
from test_granularity import slow_sums, slow_units
from torch import Tensor, nn

import supermask
from supermask import Masks
from supermask.choosing.allocation import ALLOCATIONS
from supermask.choosing.coupling import couple
from supermask.choosing.granularity import GRANULARITIES, find_granularity
from supermask.choosing.scores import SCORES
from supermask.masks.random_numbers import uniform
from supermask.masks.targets import Targets, find_targets
from supermask.selection.top_k import count_kept

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def slow_prune(
    scores: Arrays, targets: Targets, density: float, allocation: str, granularity: str, previous: Arrays | None = None
) -> Arrays:
    """Sum the scores of each unit, count, and keep the best of each tensor: a sort at each step."""
    shapes = {name: target.parameter.shape for name, target in targets.items()}
    cut = [name for name in targets if granularity != "filter" or name != targets.output]
    units = {n: slow_units(granularity, tuple(shapes[n]), targets[n].output_axis, targets[n].groups) for n in cut}
    lists = {name: slow_sums(units[name], scores[name]).tolist() for name in cut}
    for name in cut if previous is not None else ():
        alive = slow_sums(units[name], np.asarray(previous[name]))
        lists[name] = [score if alive[unit] else -math.inf for unit, score in enumerate(lists[name])]
    counts = SLOW_ALLOCATIONS[allocation](lists, density, {name: tuple(shapes[name]) for name in cut})
    masks = {name: np.ones(shape, bool) for name, shape in shapes.items()}
    for name in cut:
        order = sorted(range(len(lists[name])), key=lambda unit, name=name: (-lists[name][unit], unit))
        masks[name] = np.isin(units[name], order[: counts[name]])
        if previous is not None:
            masks[name] &= previous[name]
    return masks


def relaid(parameter: nn.Parameter, layout: str) -> None:
    """The same numbers in another order in memory."""
    if layout == "transposed" and parameter.dim() > 1:
        parameter.data = parameter.data.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "channels_last" and parameter.dim() == 4:
        parameter.data = parameter.data.to(memory_format=torch.channels_last)


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Layers whose sides are multiples of two, with few different weights or many, laid out in memory in any way."""
    even = st.sampled_from([2, 4, 6])
    layers: list[nn.Module] = []
    for kind in draw(st.lists(st.sampled_from(["linear", "conv", "grouped", "transposed"]), min_size=1, max_size=3)):
        inputs, outputs, kernel = draw(even), draw(even), draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
        layers.append(
            nn.Linear(inputs, outputs) if kind == "linear"
            else nn.Conv2d(2 * inputs, outputs, kernel, groups=2) if kind == "grouped"
            else {"conv": nn.Conv2d, "transposed": nn.ConvTranspose2d}[kind](inputs, outputs, kernel)
        )  # fmt: skip
    model = nn.Sequential(*layers, nn.Linear(draw(even), draw(even)))
    values, layout = (
        draw(st.sampled_from([0, 1, 3, 1000])),
        draw(st.sampled_from(["plain", "transposed", "channels_last"])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-values, values + 1, parameter.shape, generator=generator) / 8)
            relaid(parameter, layout)
    return model


SLOW_SCORES = {
    "magnitude": lambda name, w: np.abs(w),
    "l1": lambda name, w: np.abs(w),
    "l2": lambda name, w: w.astype(np.float64) ** 2,
    "random": lambda name, w: uniform(w.size, 5, "random/" + name).astype(np.float32).reshape(w.shape),
    "signed": lambda name, w: -np.abs(w),
}
SHAPES = [*GRANULARITIES, "block:2x2", "block:1x2", "block:2"]


def signed(model: nn.Module, targets: Targets, evidence: supermask.Evidence) -> dict[str, Tensor]:
    return {name: -target.parameter.detach().abs() for name, target in targets.items()}


def scores_of(score: str, targets: Targets) -> Arrays:
    return {name: SLOW_SCORES[score](name, target.parameter.detach().numpy()) for name, target in targets.items()}


def lists_of(masks: Masks | Arrays) -> dict[str, list]:
    return {name: np.asarray(mask).tolist() for name, mask in masks.items()}


HOW = (networks(), st.sampled_from(sorted(SLOW_SCORES)), st.sampled_from(SHAPES), st.sampled_from(sorted(ALLOCATIONS)))


def assert_equal_to_the_slow_one(model, score, shape, allocation, shares) -> None:
    targets = find_targets(model)
    scores = scores_of(score, targets)
    cut = [target for name, target in targets.items() if shape != "filter" or name != targets.output]
    number = sum(slow_units(shape, tuple(t.parameter.shape), t.output_axis, t.groups).max() + 1 for t in cut)
    previous, density = None, 1.0
    for share in shares:
        density = max(density * share, 1 / number)  # 1 / n at the end of many
        options = {"previous": previous, "seed": 5, "score": signed if score == "signed" else score}
        slow = slow_prune(scores, targets, density, allocation, shape, lists_of(previous) if previous else None)
        if not any(slow[target.name].any() for target in cut):
            assert allocation == "layerwise"
            with pytest.raises(ValueError, match=f"density {density} keeps none of the {number} units"):
                supermask.prune(model, density, allocation=allocation, granularity=shape, **options)
            return
        previous = supermask.prune(model, density, allocation=allocation, granularity=shape, **options)
        assert lists_of(previous) == lists_of(slow)


SHARES = st.lists(st.one_of(st.just(1.0), st.just(0.0), st.floats(0.3, 1)), min_size=3, max_size=3)


@given(*HOW, SHARES)
@settings(max_examples=60, deadline=None)
def test_prune_equals_the_slow_one(model, score, shape, allocation, shares):
    assert_equal_to_the_slow_one(model, score, shape, allocation, shares)


@pytest.mark.slow
@given(*HOW, SHARES)
@settings(max_examples=500, deadline=None)
def test_prune_equals_the_slow_one_many_times(model, score, shape, allocation, shares):
    assert_equal_to_the_slow_one(model, score, shape, allocation, shares)


@given(*HOW, st.lists(st.floats(0.3, 1), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_rounds_equal_the_slow_one_called_again_and_again(model, score, shape, allocation, goals):
    targets, goals = find_targets(model), sorted(goals, reverse=True)
    original, before = {name: t.parameter.detach().clone() for name, t in targets.items()}, None
    masks = supermask.prune(
        model, goals[-1], signed if score == "signed" else score, allocation, shape, rounds=goals, seed=5
    )
    assert all(torch.equal(targets[name].parameter, weight) for name, weight in original.items())
    for goal in goals:
        before = slow_prune(scores_of(score, targets), targets, goal, allocation, shape, before)
        with torch.no_grad():
            for name, target in targets.items():
                target.parameter.mul_(torch.from_numpy(before[name]))
    assert lists_of(masks) == lists_of(before)


# --- every combination of the tables


class Small(nn.Module):
    """A block in which every convolution has a norm behind it, a residual sum, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            nn.Conv2d(4, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.one(x)).relu()
        x = (x + self.norm2(self.two(x))).relu()
        return self.head(self.norm3(self.three(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    for norm in (model.norm1, model.norm2, model.norm3):
        nn.init.normal_(norm.weight)
    return model


COUPLED = "coupled filter"


def ask(model: nn.Module, density: float, score: str, allocation: str, granularity: str, **more) -> Masks | str:
    """The masks, or why there are none."""
    x, y = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 0, 1])
    more |= {
        "start": start_of(model),
        "batches": [(x[:4], y[:4]), (x[4:], y[4:])],
        "rounds": 3 if (score, granularity != "2:4") == ("synflow", True) else 1,
    }
    if granularity == COUPLED or score in ("synflow", "bn-scale"):
        more["example_input"] = x
    # With an example input the name stands for coupled filters, the object does not.
    shape = "filter" if granularity == COUPLED else find_granularity(granularity)
    try:
        return supermask.prune(model, density, score, allocation, shape, **more)
    except ValueError as error:
        return str(error)


@combine_pairs(score=SCORES, allocation=ALLOCATIONS, granularity=[*GRANULARITIES, "block:2x2", "2:4", COUPLED])
def test_every_combination_works_or_says_why_not(score, allocation, granularity, small):
    density = 0.5 if granularity == "2:4" else 0.37
    masks = ask(small, density, score, allocation, granularity)
    # Behind the head stands no norm: that score leaves it dense.
    excluded = ["head"] if score == "bn-scale" and granularity != COUPLED else []
    targets = find_targets(small, exclude=excluded)
    if granularity == "2:4" and allocation != "layerwise" and isinstance(masks, str):
        assert masks.startswith(
            "2:4 keeps 0.5 of every tensor; expected that density and allocation='layerwise', got one.weight"
        )
        return
    assert isinstance(masks, Masks), masks
    if granularity == "2:4":
        assert all((mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all() for mask in masks.values())
    assert set(masks) == {*targets, *masks.uncounted}
    units: dict[str, list[Tensor]] = {}
    if granularity == COUPLED:
        for key, group in couple(small, targets, torch.randn(1, 4, 5, 5)).groups.items():
            units[key] = list(masks[key].flatten(1))
            assert all(torch.equal(masks[row].flatten(1).any(1), masks[key].flatten(1).any(1)) for row in group.rows)
        assert masks.uncounted == {f"{m}.{a}" for m in ("one", "two", "three") for a in ("bias",)} | {
            f"norm{i}.{a}" for i in (1, 2, 3) for a in ("weight", "bias")}  # fmt: skip
    else:
        assert masks.uncounted == set()
        for name, target in targets.items():
            if granularity != "filter" or name != targets.output:
                number = torch.from_numpy(slow_units(granularity, tuple(target.parameter.shape)))
                units[name] = [masks[name][number == unit] for unit in range(int(number.max()) + 1)]
    kept = {}
    for name, parts in units.items():
        assert all(part.all() or not part.any() for part in parts), "units are dropped whole"
        kept[name] = sum(bool(part.all()) for part in parts)
    if allocation == "layerwise":
        assert kept == {name: count_kept(density, len(parts)) for name, parts in units.items()}
    else:
        assert sum(kept.values()) == count_kept(density, sum(map(len, units.values())))


@pytest.mark.parametrize("network", NETWORKS)
def test_any_network_at_any_density(network):
    model = NETWORKS[network][0]()
    targets = find_targets(model)
    for density in (1.0, 0.9, 0.1, 1 / targets.size):
        masks = supermask.prune(model, density)
        assert masks.kept == count_kept(density, targets.size)
    few, many = (supermask.prune(model, density) for density in (0.1, 0.9))
    assert few.kept < many.kept
    assert few.within(many)


# --- what a person gives


def test_masks_only_shrink_even_where_scores_would_bring_weights_back():
    model = perceptron()
    first = supermask.prune(model, 0.5)
    with torch.no_grad():
        for name, mask in first.items():
            model.get_parameter(name).copy_(torch.where(mask, model.get_parameter(name) * 1e-3, 1e3))
    for score in (*(s for s in SCORES if s not in ("synflow", "bn-scale")), signed):
        batches = [(torch.randn(4, 12), torch.tensor([0, 1, 2, 0]))]
        ask = {"batches": batches, "start": start_of(model), "previous": first}
        second = supermask.prune(model, 0.25, score, rounds=2, **ask)
        assert second.within(first)
        assert second.kept == count_kept(0.25, first.size)
    assert torch.equal(model[0].weight == 1e3, ~first["0.weight"]), "what was dropped is zeroed for scoring only"


def test_previous_masks_name_the_targets():
    model = perceptron()
    first = supermask.prune(model, 0.5, exclude="4")
    second = supermask.prune(model, 0.25, previous=dict(first))
    assert list(second) == list(first) == ["0.weight", "2.weight"]
    assert second.within(first)
    assert list(supermask.prune(model, 0.2, previous=first, exclude=["2", "4"])) == ["0.weight"]


def test_scores_and_allocations_of_ones_own():
    model = perceptron()
    masks = supermask.prune(
        model, 0.5,
        score=lambda m, t, evidence: {n: torch.arange(e.size).reshape(e.parameter.shape) for n, e in t.items()},
        allocation=lambda units, density, targets: dict.fromkeys(units, 2),
    )  # fmt: skip
    assert masks.kept_per_tensor == {"0.weight": 2, "2.weight": 2, "4.weight": 2}
    assert masks["4.weight"][-1].tolist() == [False] * 5 + [True] * 2


def test_tied_tensor_is_pruned_once_and_holds_in_both_places():
    model = NETWORKS["tied"][0]()
    masks = supermask.prune(model, 0.5)
    supermask.hold(model, masks)
    assert torch.equal(model.embedding.weight != 0, masks["embedding.weight"])
    assert torch.equal(model.head.weight != 0, masks["embedding.weight"])


def broken(model: nn.Module, targets: Targets, evidence: supermask.Evidence) -> dict[str, Tensor]:
    scores = SCORES["magnitude"](model, targets, evidence)
    scores["0.weight"][0, 0] = torch.nan
    scores["2.weight"] = torch.zeros(2)
    del scores["4.weight"]
    return scores


def some(name: str, *shape: int) -> dict[str, Tensor]:
    return {name: torch.ones(*shape, dtype=torch.bool)}


BAD = [
    ({"density": 0}, r"density is the fraction kept and lies in \(0, 1\], got 0"),
    ({"density": 1.5}, "got 1.5"),
    ({"density": math.nan}, "got nan"),
    ({"density": 0.001}, "density 0.001 keeps none of the 192 units"),
    ({"score": "magnitde"}, "unknown score 'magnitde'; did you mean 'magnitude'"),
    ({"allocation": "layer-wise"}, "unknown allocation 'layer-wise'; did you mean 'layerwise'"),
    ({"granularity": "weights"}, "unknown granularity 'weights'; did you mean 'weight'"),
    ({"score": broken}, r"0.weight has 1 NaN among its 108.*2.weight has shape \[7, 9\], its scores \[2\]; 4.weight"),
    ({"previous": some("0.weight", 9, 11)}, r"0.weight has shape \[9, 12\], its mask \[9, 11\]"),
    ({"previous": some("0.wieght", 9, 12)}, "no parameter fits '0.wieght'; did you mean '0.weight'"),
    ({"previous": some("0.weight", 9, 12), "include": "*.weight"}, "no previous mask for 2.weight; .*4.weight"),
    ({"previous": {"0.weight": torch.ones(9, 12)}}, r"a mask is a bool tensor.*got 0.weight \(float32 tensor\)"),
    ({"previous": {"0.weight": torch.arange(108).reshape(9, 12) < 9}},
     r"masks only shrink, but the previous ones keep fewer weights: 0.weight keeps 9 and density 0.5 asks for 54"),
    ({"granularity": "2:4", "density": 0.3, "include": "0.weight"}, "2:4 keeps 0.5 of every.*got 0.weight 32 of 108"),
    ({"include": "layer.*"}, "no parameter fits 'layer.*'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_requests_say_what_came_and_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        supermask.prune(perceptron(), **{"density": 0.5, **options})


def test_models_that_cannot_be_pruned():
    with pytest.raises(ValueError, match=r"no tensor that may carry a mask.*found weight \(norm\), bias \(norm\)"):
        supermask.prune(nn.LayerNorm(3), 0.5)
    model = Residual()
    supermask.learn(model, 0.5)
    with pytest.raises(ValueError, match="the model's masks are being learned: supermask.bake"):
        supermask.prune(model, 0.5)
