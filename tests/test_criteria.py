"""Zhou's mask criteria against the same written out, weight by weight."""

from __future__ import annotations

import re

import pytest
import torch
from networks import perceptron, start_of
from torch import nn

import supermask
from supermask.choosing.criteria import CRITERIA
from supermask.choosing.granularity import find_granularity
from ticket_search import RequestError, search

pytestmark = pytest.mark.quick


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def both(place: int, one: list[float], other: list[float]) -> float:
    below = [sum(value < values[place] for value in values) for values in (one, other)]
    return min(below) / len(one)


def slow(name: str, start: list[float], end: list[float]) -> list[float]:
    """The scores of a tensor's weights, each by itself."""
    scores = []
    for place, (before, after) in enumerate(zip(start, end, strict=True)):
        increase = abs(after) - abs(before)
        same = sign(before) == sign(after)
        scores.append({
            "large-final": abs(after),
            "small-final": -abs(after),
            "large-init": abs(before),
            "small-init": -abs(before),
            "large-init-large-final": both(place, list(map(abs, start)), list(map(abs, end))),
            "small-init-small-final": both(place, [-abs(v) for v in start], [-abs(v) for v in end]),
            "magnitude-increase": increase,
            "large-final-same-sign": abs(after) if same else 0.0,
            "large-final-diff-sign": 0.0 if same else abs(after),
            "magnitude-increase-same-sign": increase if same else 0.0,
            "magnitude-increase-diff-sign": 0.0 if same else increase,
        }[name])  # fmt: skip
    return scores


def pair(seed: int) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """A network and a start in eighths: with ties, zeros on either side and signs that change."""
    generator = torch.Generator().manual_seed(seed)
    model = perceptron()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=generator) / 8)
    start = {n: torch.randint(-4, 5, p.shape, generator=generator) / 8 for n, p in model.state_dict().items()}
    return model, start


@pytest.mark.parametrize("allocation", ["global", "layerwise"])
@pytest.mark.parametrize("name", CRITERIA)
def test_each_keeps_the_best_of_what_is_written_out(name, allocation):
    for seed in range(3):
        model, start = pair(seed)
        assert any((model.get_parameter(n) == 0).any() and (t == 0).any() for n, t in start.items())
        masks = supermask.prune(model, 0.3, name, allocation, start=start)
        ranked = []
        for key, mask in masks.items():
            scores = slow(name, start[key].flatten().tolist(), model.get_parameter(key).detach().flatten().tolist())
            ranked.append([(-score, number, key) for number, score in enumerate(scores)])
            assert len(scores) == mask.numel()
        if allocation == "global":
            joint = [(score, tensor, number) for tensor, each in enumerate(ranked) for score, number, _ in each]
            best = {(tensor, number) for _, tensor, number in sorted(joint)[: int(0.3 * len(joint) + 0.5)]}
        else:
            best = {
                (tensor, number)
                for tensor, each in enumerate(ranked)
                for _, number, _ in sorted(each)[: int(0.3 * len(each) + 0.5)]
            }
        kept = {(t, n) for t, mask in enumerate(masks.values()) for n in mask.flatten().nonzero().flatten().tolist()}
        assert kept == best


@pytest.mark.parametrize("name", ["large-init-large-final", "small-init-small-final"])
def test_both_lie_beyond_one_percentile(name):
    """As the authors choose: the least share of the lowest to drop by either, so that no more are kept than asked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20))
    start = {"0.weight": torch.randn(20, 30)}
    turn = 1 if name.startswith("large") else -1
    one, other = (turn * t.detach().abs().flatten() for t in (start["0.weight"], model[0].weight))
    for density in (0.1, 0.5):
        kept = supermask.prune(model, density, name, start=start)["0.weight"].flatten()
        for low in range(600):
            quadrant = (one >= one.sort().values[low]) & (other >= other.sort().values[low])
            if int(quadrant.sum()) <= 600 * density:
                break
        assert int(kept.sum()) - int(quadrant.sum()) in (0, 1), "two weights may stand on the border"
        assert not (quadrant & ~kept).any()


@pytest.mark.parametrize("name", CRITERIA)
def test_what_was_dropped_counts_no_more(name):
    model, start = pair(3)
    first = supermask.prune(model, 0.6, "random", "layerwise", seed=2)
    masks = supermask.prune(model, 0.3, name, "layerwise", previous=first, start=start)
    for key, mask in masks.items():
        alive = first[key].flatten().nonzero().flatten()
        before, after = start[key].flatten()[alive], model.get_parameter(key).detach().flatten()[alive]
        scores = slow(name, before.tolist(), after.tolist())
        best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[: int(mask.sum())]
        assert mask.flatten().nonzero().flatten().tolist() == sorted(alive[best].tolist()), key


def test_large_final_is_the_magnitude():
    model, _ = pair(1)
    assert supermask.prune(model, 0.4, "large-final") == supermask.prune(model, 0.4)


def test_excluded_signs_are_not_barred():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[0.5, 0.25, -0.5, 0.0]])
    start = {"0.weight": torch.tensor([[0.25, 0.5, 0.25, 0.25]])}
    # Grown: .25; shrunk: -.25; of the other sign, and without one: 0.
    kept = [
        supermask.prune(model, p, "magnitude-increase-same-sign", start=start)["0.weight"] for p in (0.25, 0.5, 1.0)
    ]
    assert [mask.flatten().tolist() for mask in kept[:2]] == [[True, False, False, False], [True, False, True, False]]
    assert bool(kept[2].all())


def test_of_filters_the_sums_count():
    model, start = pair(0)
    shape = find_granularity("filter")
    masks = supermask.prune(model, 0.5, "magnitude-increase", granularity=shape, start=start)
    for key in ("0.weight", "2.weight"):
        sums = (model.get_parameter(key).detach().abs() - start[key].abs()).sum(1)
        best = sorted(range(len(sums)), key=lambda row: (-sums[row].item(), row))[: int(len(sums) / 2 + 0.5)]
        assert masks[key].all(1).nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ("large-final", "small-final")])
def test_without_a_start_it_says_what_is_missing(name):
    with pytest.raises(ValueError, match=f"'{name}' compares with the weights that training began from.*start=..."):
        supermask.prune(perceptron(), 0.5, name)


def test_a_start_of_another_network_is_refused():
    model, start = pair(0)
    start["0.weight"] = torch.zeros(3, 3)
    del start["2.weight"]
    with pytest.raises(ValueError) as error:
        supermask.prune(model, 0.5, "large-init", start=start)
    assert "there is no 2.weight in it; 0.weight has shape [3, 3] in it and [" in str(error.value)
    with pytest.raises(ValueError, match="expected start=..., a state dict of the model from before, not Sequential"):
        supermask.prune(model, 0.5, "large-init", start=model)
    with pytest.raises(ValueError, match="leave start out"):
        supermask.prune(model, 0.5, "wanda", start=start, batches=[torch.randn(3, 12)])


def test_names_as_wrappers_give_them():
    model = perceptron()
    start = start_of(model)
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in start.items()}
    first = supermask.prune(model, 0.6, "large-init", start=wrapped)
    assert first == supermask.prune(model, 0.6, "large-init", start=start)
    again = [supermask.prune(model, 0.2, "large-init-large-final", start=s, previous=first) for s in (start, wrapped)]
    assert again[0] == again[1]


FLAGS = {"epochs": 2, "threads": 1, "progress": False, "train_size": 300}


@pytest.mark.parametrize(("then", "rewind"), [("rewind", "0"), ("rewind", "3it"), ("fine-tune", "0")])
def test_one_shot_compares_with_what_it_goes_back_to(then, rewind, tmp_path):
    name = "magnitude-increase-same-sign"
    run = search("one-shot", runs=tmp_path, density=0.2, score=name, then=then, rewind=rewind, **FLAGS)
    dense = run.load_level(0)
    start = dense.state_dict("start") if rewind == "0" else run.load_rewind_point().state_dict()
    expected = supermask.prune(dense.model(), 0.2, name, start=start)
    assert run.ticket.masks == expected
    assert expected != supermask.prune(dense.model(), 0.2)
    signs = [
        (run.ticket.state_dict("start")[n][m].sign(), dense.state_dict()[n][m].sign()) for n, m in expected.items()
    ]
    assert then == "fine-tune" or all(torch.equal(one, other) for one, other in signs)


def test_one_shot_knows_them_all(tmp_path):
    with pytest.raises(RequestError) as error:
        search("one-shot", runs=tmp_path, score="magnitude-increas", **FLAGS)
    assert "did you mean 'magnitude-increase'" in str(error.value)
    assert all(re.search(rf"\b{name}\b", str(error.value)) for name in CRITERIA)
