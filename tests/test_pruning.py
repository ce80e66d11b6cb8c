from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import NETWORKS, perceptron

import supermask
from supermask.allocation import ALLOCATIONS
from supermask.granularity import GRANULARITIES
from supermask.scores import SCORES
from supermask.selection import count_kept


def slow_prune(scores: dict[str, np.ndarray], density: float, allocation: str, previous=None) -> dict[str, np.ndarray]:
    """Rank single weights in Python."""

    def rank(names: list[str], k: int) -> set[tuple[str, int]]:
        items = [
            (-float(scores[n].flat[i]), names.index(n), i, n)
            for n in names
            for i in range(scores[n].size)
            if previous is None or previous[n].flat[i]
        ]
        return {(n, i) for _, _, i, n in sorted(items)[:k]}

    names = list(scores)
    if allocation == "global":
        kept = rank(names, count_kept(density, sum(s.size for s in scores.values())))
    else:
        kept = set().union(*(rank([n], count_kept(density, scores[n].size)) for n in names))
    masks = {n: np.zeros(s.shape, bool) for n, s in scores.items()}
    for n, i in kept:
        masks[n].flat[i] = True
    return masks


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("score", SCORES)
def test_every_combination_equals_the_slow_reference(network, granularity, allocation, score):
    model = NETWORKS[network][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 4).round() / 4)  # ties
    targets = supermask.find_targets(model)
    scores = {n: s.numpy() for n, s in SCORES[score](model, targets, 3).items()}
    previous = None
    for density in (1.0, 0.7, 0.31, 0.05, 1 / targets.size):
        if allocation == "layerwise" and density == 1 / targets.size:
            continue
        masks = supermask.prune(model, density, score, allocation, granularity, previous=previous, seed=3)
        slow = slow_prune(
            scores, density, allocation, None if previous is None else {n: m.numpy() for n, m in previous.items()}
        )
        assert {n: m.numpy().tolist() for n, m in masks.items()} == {n: m.tolist() for n, m in slow.items()}
        previous = masks


def test_density_point_one_keeps_fewer_than_point_nine():
    model = perceptron()
    for allocation in ALLOCATIONS:
        few, many = (supermask.prune(model, d, allocation=allocation) for d in (0.1, 0.9))
        assert few.kept < many.kept
        assert few.within(many)


def test_memory_format_does_not_matter():
    model = torch.nn.Conv2d(6, 8, 3)
    plain = supermask.prune(model, 0.3)
    assert supermask.prune(model.to(memory_format=torch.channels_last), 0.3) == plain


def test_the_model_is_not_changed():
    model = perceptron()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    supermask.prune(model, 0.2)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_masks_only_shrink_even_where_scores_would_bring_weights_back():
    model = perceptron()
    first = supermask.prune(model, 0.5)
    with torch.no_grad():
        for name, mask in first.items():
            parameter = model.get_parameter(name)
            parameter.copy_(torch.where(mask, parameter * 1e-3, parameter * 1e3))
    second = supermask.prune(model, 0.25, previous=first)
    assert second.within(first)
    assert second.kept == count_kept(0.25, first.size)
    signed = supermask.prune(
        model, 0.4, score=lambda m, t, s: {n: -e.parameter.detach().abs() for n, e in t.items()}, previous=first
    )
    assert signed.within(first), "negative scores do not revive dropped weights"


def test_previous_masks_name_the_targets():
    model = perceptron()
    first = supermask.prune(model, 0.5, exclude="4")
    second = supermask.prune(model, 0.25, previous=first)
    assert list(second) == list(first) == ["0.weight", "2.weight"]
    assert second.within(first)


def test_scores_and_allocations_of_ones_own():
    model = perceptron()
    masks = supermask.prune(
        model, 0.5,
        score=lambda m, targets, seed: {n: torch.arange(t.size).reshape(t.parameter.shape) for n, t in targets.items()},
        allocation=lambda scores, density: {n: 2 for n in scores},
    )  # fmt: skip
    assert masks.kept_per_tensor == {"0.weight": 2, "2.weight": 2, "4.weight": 2}
    assert masks["4.weight"][-1].tolist() == [False] * 5 + [True] * 2


def test_tied_tensor_is_pruned_once_and_holds_in_both_places():
    model = NETWORKS["tied"][0]()
    masks = supermask.prune(model, 0.5)
    supermask.hold(model, masks)
    assert torch.equal(model.embedding.weight != 0, masks["embedding.weight"])
    assert torch.equal(model.head.weight != 0, masks["embedding.weight"])


def test_bad_requests_say_what_came_and_what_was_expected():
    model = perceptron()
    for density in (0, 1.5, -1):
        with pytest.raises(ValueError, match=r"density is the fraction kept and lies in \(0, 1\], got"):
            supermask.prune(model, density)
    for option, word, near in [
        ("score", "magnitde", "magnitude"), ("allocation", "layer-wise", "layerwise"), ("granularity", "weights", "weight"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"unknown {option} '{word}'; did you mean '{near}'"):
            supermask.prune(model, 0.5, **{option: word})

    def broken(m, targets, seed):
        scores = SCORES["magnitude"](m, targets, seed)
        scores["0.weight"][0, 0] = torch.nan
        scores["2.weight"] = torch.zeros(2)
        del scores["4.weight"]
        return scores

    with pytest.raises(
        ValueError, match=r"0.weight has 1 NaN.*2.weight has shape \[7, 9\].*\[2\]; 4.weight has no score"
    ):
        supermask.prune(model, 0.5, broken)
    with pytest.raises(ValueError, match="masks only shrink.*asks for"):
        supermask.prune(
            model, 0.5, allocation="layerwise", previous=supermask.prune(model, 0.2, allocation="layerwise")
        )
    with pytest.raises(ValueError, match="no previous mask for 4.weight"):
        previous = supermask.prune(model, 0.5, exclude="4")
        supermask.prune(model, 0.2, previous=previous, include="*.weight")
    with pytest.raises(ValueError, match="density 0.001 keeps none of the 192 units"):
        supermask.prune(model, 0.001)
