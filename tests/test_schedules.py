"""Density over rounds, and what `prune` makes of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import perceptron
from torch import nn

import supermask
from supermask import densities_over
from supermask.choosing.schedules import SCHEDULES
from supermask.choosing.scores import ROUNDS, SCORES
from supermask.masks.targets import find_targets
from supermask.selection.top_k import count_kept

pytestmark = pytest.mark.quick

# f(share of the rounds done) of a fall from 1 to 1/16, at 0, 1/4, 1/2, 3/4 and 1.
EXPECTED = {
    "exponential": [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16],
    "linear": [1, 1 - 15 / 64, 1 - 30 / 64, 1 - 45 / 64, 1 / 16],
    "cubic": [1, 1 / 16 + 15 / 16 * 27 / 64, 1 / 16 + 15 / 16 / 8, 1 / 16 + 15 / 16 / 64, 1 / 16],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_from_the_start_to_the_density(name):
    assert densities_over(4, 1 / 16, name) == pytest.approx(EXPECTED[name][1:])
    assert [SCHEDULES[name](done, 1 / 16, 1.0) for done in (0, 1)] == pytest.approx([1, 1 / 16])
    for density, start in [(0.013, 1.0), (0.3, 0.7), (0.5, 0.5), (1.0, 1.0)]:
        goals = densities_over(7, density, name, start)
        assert len(goals) == 7
        assert goals[-1] == density, "to the bit"
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise([start, *goals]))
    assert densities_over(1, 0.2, name) == [0.2]


def test_exponential_drops_the_same_share_in_every_round():
    goals = [1.0, *densities_over(100, 0.01)]
    assert goals == pytest.approx([0.01 ** (t / 100) for t in range(101)])
    shares = [later / earlier for earlier, later in itertools.pairwise(goals)]
    assert shares == pytest.approx([0.01**0.01] * 100)


def test_densities_written_out_and_schedules_of_ones_own():
    assert densities_over([0.7, 0.4, 0.4], 0.4) == [0.7, 0.4, 0.4]
    assert densities_over(3, 0.1, lambda done, density, start: start) == [1.0, 1.0, 0.1]


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        (0, "expected at least one round, got 0"),
        (-2, "expected at least one round, got -2"),
        ([], r"rounds \[\]: expected densities in \(0, 1\] that never grow and end on 0.2"),
        ([0.5, 0.6, 0.2], "never grow"),
        ([1.5, 0.2], "never grow"),
        ([0.5, 0.3], "end on 0.2"),
    ],
)
def test_rounds_that_are_none(rounds, message):
    with pytest.raises(ValueError, match=message):
        supermask.prune(perceptron(), 0.2, rounds=rounds)
    with pytest.raises(ValueError, match="unknown schedule 'cubik'; did you mean 'cubic'"):
        supermask.prune(perceptron(), 0.2, rounds=2, schedule="cubik")


@pytest.fixture
def watched(monkeypatch):
    """The number of weights different from 0 at every call of a score."""
    alive: list[int] = []

    def watch(name: str) -> list[int]:
        score = SCORES[name]

        def counting(model: nn.Module, targets, evidence):
            alive.append(sum(int(torch.count_nonzero(target.parameter)) for target in targets.values()))
            return score(model, targets, evidence)

        monkeypatch.setitem(SCORES, name, counting)
        return alive

    return watch


def test_synflow_takes_a_hundred_rounds_down_to_the_density(watched):
    alive = watched("synflow")
    model = nn.Sequential(nn.Linear(20, 30, bias=False), nn.ReLU(), nn.Linear(30, 20, bias=False))
    masks = supermask.prune(model, 0.01, "synflow", example_input=torch.ones(1, 20))
    assert ROUNDS == {"synflow": 100}
    assert alive == [count_kept(0.01 ** (t / 100), 1200) for t in range(100)]
    assert masks.kept == 12


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_round_scores_the_network_that_the_one_before_left(schedule, watched):
    alive = watched("magnitude")
    model = perceptron()
    masks = supermask.prune(model, 0.1, rounds=4, schedule=schedule)
    assert alive == [count_kept(goal, 192) for goal in [1.0, *densities_over(4, 0.1, schedule)[:3]]]
    assert masks == supermask.prune(model, 0.1), "magnitudes do not change on the way"
    assert all(bool(parameter.all()) for parameter in model.parameters()), "what was zeroed is back"


def test_rounds_start_from_what_the_previous_masks_keep(watched):
    alive = watched("magnitude")
    model = perceptron()
    first = supermask.prune(model, 0.4)
    second = supermask.prune(model, 0.1, rounds=2, previous=first)
    kept = count_kept(0.4, 192)
    assert alive == [192, kept, count_kept(kept / 192 * (0.1 / (kept / 192)) ** 0.5, 192)]
    assert second.within(first)


@pytest.mark.parametrize("granularity", ["weight", "filter", "channel"])
def test_rounds_after_rounds_in_any_shape(granularity):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 3))
    example = {"example_input": torch.randn(1, 3, 6, 6)} if granularity == "filter" else {}
    first = supermask.prune(model, 0.5, granularity=granularity, **example)
    second = supermask.prune(model, 0.25, granularity=granularity, previous=first, rounds=3, **example)
    assert second.within(first)


def test_rounds_count_units_and_not_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 300))
    example, channels = torch.randn(1, 3, 6, 6), []

    def counting(model: nn.Module, targets, evidence):
        channels.append(sum(int(model[layer].weight.flatten(1).any(1).sum()) for layer in (0, 2)))
        return SCORES["magnitude"](model, targets, evidence)

    shape = {"allocation": "global", "granularity": "filter", "example_input": example}
    first = supermask.prune(model, 0.5, **shape)
    assert first.density > 0.9, "most weights are in the head, which stays whole"
    supermask.prune(model, 0.25, counting, previous=first, rounds=3, **shape)
    assert channels == [8, count_kept(0.5 * 0.5 ** (1 / 3), 16), count_kept(0.5 * 0.5 ** (2 / 3), 16)]


def test_only_the_last_round_must_be_met_in_each_tensor():
    model = perceptron()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    first = supermask.prune(model, 0.6)
    assert first.densities["0.weight"] < 0.4
    second = supermask.prune(model, 0.25, allocation="layerwise", previous=first, rounds=3)
    assert second.kept_per_tensor == {name: count_kept(0.25, t.size) for name, t in find_targets(model).items()}
