"""How many units each tensor keeps, against exact fractions and sorted lists."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import NETWORKS, perceptron
from torch import Tensor, nn

import supermask
from supermask import by_glob, by_rate, with_floor
from supermask.choosing.allocation import ALLOCATIONS, find_allocation, shrink_by_rate
from supermask.masks.targets import Targets, find_targets
from supermask.selection.top_k import count_kept

Counts = dict[str, int]
Lists = dict[str, list[float]]  # scores of the units of each tensor, -inf: dropped before


def slow_total(density: float, units: Lists) -> int:
    return math.floor(density * sum(map(len, units.values())) + 0.5)


def slow_global(units: Lists, density: float, shapes: dict[str, tuple[int, ...]]) -> Counts:
    everything = [
        (score, -place, -at, name)
        for place, (name, scores) in enumerate(units.items())
        for at, score in enumerate(scores)
    ]
    best = sorted(everything, reverse=True)[: slow_total(density, units)]
    return {name: sum(owner == name for *_, owner in best) for name in units}


def slow_layerwise(units: Lists, density: float, shapes: dict[str, tuple[int, ...]]) -> Counts:
    return {name: math.floor(density * len(scores) + 0.5) for name, scores in units.items()}


def hamilton(shares: dict[str, Fraction], total: int) -> Counts:
    counts = {name: math.floor(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda name: counts[name] - shares[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def slow_proportion(units: Lists, density: float, raw: dict[str, Fraction]) -> Counts:
    """Find how many tensors are whole by trying: the others have epsilon times their raw density."""
    total = slow_total(density, units)
    mass = {name: raw[name] * len(scores) for name, scores in units.items()}
    limits = {name: sum(score != -math.inf for score in scores) for name, scores in units.items()}
    order = sorted(units, key=lambda name: limits[name] / mass[name])
    for number in range(len(order) + 1):
        whole, free = order[:number], order[number:]
        left = total - sum(limits[name] for name in whole)
        epsilon = Fraction(left) / sum(mass[name] for name in free) if free else math.inf
        if left >= 0 and all(epsilon * mass[name] <= limits[name] for name in free):
            return hamilton(
                {name: Fraction(limits[name]) if name in whole else epsilon * mass[name] for name in units}, total
            )
    raise AssertionError("more units than there are")


def slow_erk(units: Lists, density: float, shapes: dict[str, tuple[int, ...]]) -> Counts:
    return slow_proportion(units, density, {name: Fraction(sum(s), math.prod(s)) for name, s in shapes.items()})


def slow_er(units: Lists, density: float, shapes: dict[str, tuple[int, ...]]) -> Counts:
    return slow_erk(units, density, {name: shape[:2] for name, shape in shapes.items()})


def slow_balanced(units: Lists, density: float, shapes: dict[str, tuple[int, ...]]) -> Counts:
    """Deal one unit to each tensor in turn, as long as it has some."""
    counts, total = dict.fromkeys(units, 0), slow_total(density, units)
    while sum(counts.values()) < total:
        for name, scores in units.items():
            if sum(counts.values()) < total and counts[name] < sum(score != -math.inf for score in scores):
                counts[name] += 1
    return counts


SLOW = {"global": slow_global, "layerwise": slow_layerwise, "erk": slow_erk, "er": slow_er, "balanced": slow_balanced}


def test_every_allocation_has_a_slow_one():
    assert set(SLOW) == set(ALLOCATIONS)


def network(shapes: list[tuple[int, ...]]) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    layers = [nn.Conv2d(s[1], s[0], s[2:]) if len(s) == 4 else nn.Linear(s[1], s[0]) for s in shapes]
    return nn.Sequential(*layers), {f"{i}.weight": shape for i, shape in enumerate(shapes)}


shapes_of_layers = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)
densities = st.one_of(st.just(1.0), st.floats(0.01, 1))


@given(shapes_of_layers, densities, st.integers(1, 9), st.data())
@pytest.mark.parametrize("name", ALLOCATIONS)
@settings(max_examples=25, deadline=None)
def test_counts_equal_the_slow_ones(name, shapes, density, values, data):
    model, by_name = network(shapes)
    units: Lists = {}
    for key, shape in by_name.items():
        size = math.prod(shape)
        scores = data.draw(st.lists(st.integers(0, values), min_size=size, max_size=size))
        units[key] = [float(score) for score in scores]
    assume(slow_total(density, units) > 0)
    counts = ALLOCATIONS[name](
        {key: torch.tensor(scores) for key, scores in units.items()}, density, find_targets(model)
    )
    assert counts == SLOW[name](units, density, by_name)
    if name != "layerwise":
        assert sum(counts.values()) == slow_total(density, units)


@given(shapes_of_layers, st.floats(0.05, 1), st.integers(0, 999))
@pytest.mark.parametrize("name", [name for name in ALLOCATIONS if name != "layerwise"])
@settings(max_examples=20, deadline=None)
def test_what_was_dropped_before_is_not_counted_on(name, shapes, share, seed):
    model, by_name = network(shapes)
    generator = torch.Generator().manual_seed(seed)
    scores = {key: torch.rand(math.prod(shape), generator=generator) for key, shape in by_name.items()}
    scores = {
        key: score.masked_fill(torch.rand(score.shape, generator=generator) < 0.5, -torch.inf)
        for key, score in scores.items()
    }
    alive = sum(int((score != -torch.inf).sum()) for score in scores.values())
    density = share * alive / sum(map(len, scores.values()))
    units = {key: score.tolist() for key, score in scores.items()}
    assume(0 < slow_total(density, units) <= alive)
    counts = ALLOCATIONS[name](scores, density, find_targets(model))
    assert counts == SLOW[name](units, density, by_name)
    assert all(count <= int((scores[key] != -torch.inf).sum()) for key, count in counts.items())


@pytest.mark.parametrize("name", ["erk", "er", "balanced"])
def test_more_than_the_previous_masks_keep_is_refused_by_name(name):
    model = perceptron()
    previous = supermask.prune(model, 0.2)
    with pytest.raises(ValueError, match=r"masks only shrink: density 0\.5 asks for 96 units.* 0\.weight \d+ of 108"):
        supermask.prune(model, 0.5, allocation=name, previous=previous)
    uneven = {
        "0.weight": [0.0] * 2 + [-math.inf] * 3,
        "2.weight": [0.0] * 2 + [-math.inf] * 3,
        "4.weight": [0.0] * 2 + [-math.inf] * 3,
    }
    with pytest.raises(ValueError, match="asks for 7 units"):  # each 2.45, rounded alone, would be what is left
        ALLOCATIONS[name]({key: torch.tensor(score) for key, score in uneven.items()}, 0.49, find_targets(model))


def test_erk_gives_small_layers_more_and_er_forgets_the_kernel():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 1), nn.Linear(64, 10))
    erk = supermask.prune(model, 0.1, allocation="erk").densities
    assert erk["0.weight"] < erk["1.weight"] < erk["2.weight"]
    assert erk["0.weight"] / erk["1.weight"] == pytest.approx(
        (64 + 64 + 6) / (64 * 64 * 9) / ((64 + 64 + 2) / 64**2), rel=1e-2
    )
    er = supermask.prune(model, 0.1, allocation="er").densities
    assert er["0.weight"] == pytest.approx(er["1.weight"], rel=1e-2)
    balanced = supermask.prune(model, 0.01, allocation="balanced").kept_per_tensor
    assert set(balanced.values()) <= {count_kept(0.01, 41600) // 3, count_kept(0.01, 41600) // 3 + 1}


# --- rates and densities by layer


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.1, 0.2, 0.5, 0.9])), min_size=1, max_size=5),
    st.floats(0.02, 1),
)
@settings(max_examples=40, deadline=None)
def test_rates_meet_the_total_at_one_level_of_all(layers, density):
    sizes = {str(i): size for i, (size, _) in enumerate(layers)}
    rates = {str(i): rate for i, (_, rate) in enumerate(layers)}
    total = count_kept(density, sum(sizes.values()))
    assume(total > 0)
    level, counts = shrink_by_rate(sizes, rates, total)
    shares = {name: size * (1 - rates[name]) ** level for name, size in sizes.items()}
    assert sum(shares.values()) == pytest.approx(total, abs=1e-6)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - shares[name]) < 1 + 1e-6 for name in sizes)


def test_rates_by_kind_glob_and_output():
    model = nn.Sequential(nn.Conv2d(1, 10, 10), nn.Flatten(), nn.Linear(10, 100), nn.Linear(100, 10))
    masks = supermask.prune(model, (1000 * 0.81 + 1000 * 0.64 + 1000 * 0.9025) / 3000,
                            allocation=by_rate({"output": 0.05, "conv": 0.1, "linear": 0.2}))  # fmt: skip
    # Two levels of 10 %, 20 % and 5 %: the first rate that fits is taken.
    assert masks.kept_per_tensor == pytest.approx({"0.weight": 810, "2.weight": 640, "3.weight": 902.5}, abs=0.6)
    left = supermask.prune(model, 0.7, allocation=by_rate({"2": 0.2, "0.*": 0.1}))
    assert left["3.weight"].all(), "of no rate, so whole"
    for rates, density, message in [
        ({"conv": 1.0}, 0.5, r"a rate is the fraction dropped per level and lies in \[0, 1\), got conv 1.0"),
        ({"conv": -0.1, "linear": 2}, 0.5, "got conv -0.1, linear 2"),
        ({"convs": 0.1}, 0.5, "'convs' fits no tensor"),
        ({"0.wieght": 0.1}, 0.5, "'0.wieght' fits no tensor; did you mean '0.weight'"),
        (
            {"conv": 0.1},
            0.5,
            r"2000 units are in tensors of rate 0 \(2.weight 1000, 3.weight 1000\), 1500 are to be kept",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            supermask.prune(model, density, allocation=by_rate(rates))


def test_densities_by_glob_kind_and_output():
    model = nn.Sequential(nn.Conv2d(1, 10, 10), nn.Flatten(), nn.Linear(10, 100), nn.Linear(100, 10))
    expected = {"0.weight": 500, "2.weight": 100, "3.weight": 1000}
    asked = {"conv": 0.5, "output": 1.0, "linear": 0.1}
    assert supermask.prune(model, asked).kept_per_tensor == expected
    assert supermask.prune(model, 0.9, allocation=by_glob(asked)).kept_per_tensor == expected
    assert supermask.prune(model, {"*.weight": 0.25}).kept_per_tensor == dict.fromkeys(expected, 250)
    for wrong, message in [
        ({"conv": 0.5}, "nothing is said of 2.weight, 3.weight"),
        ({"conv": 0.5, "linear": 0.5, "lineer": 0.1}, "'lineer' fits no tensor"),
        ({"conv": 0.5, "linear": 1.5}, r"density is the fraction kept and lies in \(0, 1\], got 1.5"),
        ({"conv": 0.5, "linear": 0}, "got 0"),
        ({}, "nothing is said of 0.weight, 2.weight, 3.weight"),
    ]:
        with pytest.raises(ValueError, match=message):
            supermask.prune(model, wrong)
    with pytest.raises(ValueError, match="'output' fits 3.weight, which has no units of its own"):
        supermask.prune(model, asked, granularity="filter")
    for more, message in [
        ({"floor": 0.1}, "densities by glob are floors themselves"),
        ({"rounds": 3}, "densities by glob are met in one round: expected rounds=1"),
        ({"allocation": "erk"}, "densities by glob are an allocation themselves: expected one density with 'erk'"),
    ]:
        with pytest.raises(ValueError, match=message):
            supermask.prune(model, asked, **more)


# --- floors


def slow_floor(name: str, units: Lists, density: float, floor: float, shapes: dict[str, tuple[int, ...]]) -> Counts:
    """Give every tensor that falls below its floor just that, and the others what is left, again and again."""
    least = {key: max(1, math.floor(floor * len(scores) + 0.5)) for key, scores in units.items()}
    total, raised = sum(SLOW[name](units, density, shapes).values()), {}
    while True:
        free = {key: scores for key, scores in units.items() if key not in raised}
        left = total - sum(raised.values())
        counts = SLOW[name](free, left / max(1, sum(map(len, free.values()))), {key: shapes[key] for key in free})
        below = {key: least[key] for key in free if counts[key] < least[key]}
        if not below:
            return counts | raised
        raised |= below


@given(shapes_of_layers, st.floats(0.1, 1), st.floats(0.001, 0.99), st.integers(0, 999))
@pytest.mark.parametrize("name", [name for name in ALLOCATIONS if name != "layerwise"])
@settings(max_examples=25, deadline=None)
def test_floors_take_from_the_others_what_they_give(name, shapes, density, floor, seed):
    model, by_name = network(shapes)
    generator = torch.Generator().manual_seed(seed)
    scores = {
        key: torch.rand(math.prod(shape), generator=generator) * 10 ** int(key[0]) for key, shape in by_name.items()
    }
    units = {key: score.tolist() for key, score in scores.items()}
    least = {key: max(1, count_kept(floor, len(score))) for key, score in scores.items()}
    allocate = with_floor(ALLOCATIONS[name], floor)
    if sum(least.values()) > slow_total(density, units):
        with pytest.raises(
            ValueError, match=f"keeps {slow_total(density, units)} units, a floor of {floor} needs .*0.weight"
        ):
            allocate(scores, density, find_targets(model))
        return
    counts = allocate(scores, density, find_targets(model))
    assert counts == slow_floor(name, units, density, floor, by_name)
    assert sum(counts.values()) == slow_total(density, units)
    assert all(counts[key] >= least[key] for key in counts)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_floor_of_next_to_nothing_leaves_a_unit_in_every_tensor(network):
    model = NETWORKS[network][0]()
    size = len(find_targets(model))
    for name in ALLOCATIONS:
        masks = supermask.prune(model, 0.1, allocation=name, floor=1e-9)
        assert min(masks.kept_per_tensor.values()) >= 1
        assert sum(masks.kept_per_tensor.values()) == supermask.prune(model, 0.1, allocation=name).kept >= size


def test_floors_with_rates_and_globs_and_what_cannot_be():
    model = perceptron()
    rates = with_floor(by_rate({"output": 0.9, "linear": 0.1}), 0.3)
    assert supermask.prune(model, 0.5, allocation=rates).kept_per_tensor["4.weight"] == count_kept(0.3, 21)
    globs = with_floor(by_glob({"4": 0.05, "*.weight": 0.5}), 0.3)
    masks = supermask.prune(model, 1.0, allocation=globs)
    assert masks.kept_per_tensor["4.weight"] == count_kept(0.3, 21)
    assert masks.kept == 54 + 32 + 1, "what the globs keep in all"
    for floor in (-0.1, 1.0):
        with pytest.raises(
            ValueError, match=rf"floor is the fraction that every tensor keeps and lies in \[0, 1\), got {floor}"
        ):
            supermask.prune(model, 0.5, floor=floor)
    with pytest.raises(
        ValueError, match=r"density 0.01 keeps 2 units, a floor of 0.001 needs 3: 0.weight 1 of 108, 2.weight 1 of 63"
    ):
        supermask.prune(model, 0.01, floor=0.001)
    with pytest.raises(ValueError, match="unknown allocation 'layer-wise'; did you mean 'layerwise'"):
        find_allocation("layer-wise")


def test_an_allocation_of_ones_own():
    def two_each(units: dict[str, Tensor], density: float, targets: Targets) -> Counts:
        assert list(units) == list(targets)
        assert density == 0.25
        return dict.fromkeys(units, 2)

    assert supermask.prune(perceptron(), 0.25, allocation=two_each).kept_per_tensor == {
        "0.weight": 2,
        "2.weight": 2,
        "4.weight": 2,
    }
    with pytest.raises(ValueError, match="density 0.25 keeps none of the 192 units"):
        supermask.prune(perceptron(), 0.25, allocation=lambda units, density, targets: dict.fromkeys(units, 0))
