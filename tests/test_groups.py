"""N of every M: selection in groups, learned in groups, and pruned to groups level by level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import NETWORKS, Attention, transposed
from torch import nn

import supermask
from supermask.live.held import program_of
from supermask.selection.top_k import PAIRS, best_of_each
from ticket_search import search
from ticket_search.contract.errors import RequestError
from ticket_search.methods.imp import Config, patterns

QUICK = {"epochs": 2, "threads": 1, "progress": False, "train_size": 320}


def one_by_one(keys: np.ndarray, n: int) -> list[list[bool]]:
    """In each row n times the first of the largest that are left."""
    kept = []
    for row in keys.tolist():
        left = list(range(len(row)))
        for _ in range(n):
            left.remove(max(left, key=lambda i: (row[i], -i)))
        kept.append([i not in left for i in range(len(row))])
    return kept


def groups_by_hand(key: np.ndarray, axis: int, n: int, m: int) -> np.ndarray:
    """The mask of n of every m entries along an axis, place by place."""
    mask = np.zeros(key.shape, dtype=bool)
    others = [range(size) for d, size in enumerate(key.shape) if d != axis]
    for place in itertools.product(*others):
        for start in range(0, key.shape[axis], m):
            at = [(*place[:axis], i, *place[axis:]) for i in range(start, start + m)]
            best = sorted(range(m), key=lambda i: (-key[at[i]], i))[:n]
            for i in best:
                mask[at[i]] = True
    return mask


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (1, 4), (5, PAIRS), (3, PAIRS + 1)])
def test_the_best_of_each_group_ties_to_the_first(n, m):
    generator = np.random.default_rng(n * m)
    for keys in (generator.normal(size=(50, m)), generator.integers(0, 3, size=(50, m)), np.zeros((2, m))):
        assert best_of_each(torch.tensor(keys), n).tolist() == one_by_one(keys, n)
    ends = torch.full((3, m), -torch.inf)
    assert best_of_each(ends, n).sum(1).tolist() == [n] * 3


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 3, groups=2), nn.Conv1d(8, 4, 1))


@pytest.mark.parametrize(
    ("make", "pattern", "exclude"),
    [
        (lambda: nn.Sequential(nn.Linear(12, 9), nn.Linear(8, 7)), "2:4", None),
        (lambda: nn.Sequential(nn.Linear(12, 9)), "1:3", None),
        (lambda: nn.Sequential(nn.Linear(64, 9)), "7:32", None),
        (convolutions, "1:4", None),
        (Attention, "2:4", "token"),
        (transposed, "1:2", ["0"]),
    ],
)
def test_learned_masks_are_those_of_groups_by_hand(make, pattern, exclude):
    model = make()
    n, m = map(int, pattern.split(":"))
    targets = supermask.learn(model, granularity=pattern, exclude=exclude)
    program = program_of(model)
    assert program.density == n / m
    for name in targets:  # ties, and scores of both signs
        with torch.no_grad():
            program.score(name).mul_(20).round_()
    masks = supermask.masks_of(model)
    in_a_step = program.rule.choose(program.layers)
    for (name, target), now in zip(targets.items(), in_a_step, strict=True):
        key = program.score(name).detach().abs().numpy()
        assert np.array_equal(masks[name].numpy(), groups_by_hand(key, 1 - target.output_axis, n, m))
        assert torch.equal(now, masks[name])
        assert 0 < masks.kept_per_tensor[name] == target.size // m * n


@pytest.mark.parametrize("network", ["perceptron", "tied"])
def test_gradients_go_past_the_choice_and_weights_stay(network):
    model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    # Of 12 and 9 inputs every third is a group, of the last layer's 7 none; a tied weight reads 6.
    pattern, exclude = ("1:3", "4") if network == "perceptron" else ("1:2", None)
    targets = supermask.learn(model, granularity=pattern, exclude=exclude)
    program = program_of(model)
    model(x).square().sum().backward()
    name = next(iter(targets))
    twin = supermask.bake(model)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    twin(x).square().sum().backward()
    expected = twin.get_parameter(name).grad * program.parameter(name) * program.score(name).sign()
    torch.testing.assert_close(program.score(name).grad, expected, rtol=1e-4, atol=1e-6)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    before = supermask.masks_of(model)
    optimizer.step()
    supermask.check(model)  # the frozen weights too
    assert supermask.masks_of(model) != before
    assert supermask.masks_of(model).kept_per_tensor == before.kept_per_tensor


def test_bad_requests_of_learn_all_at_once():
    def model():
        return nn.Sequential(nn.Linear(10, 9), nn.Linear(9, 8), nn.Linear(8, 4))

    with pytest.raises(ValueError) as error:
        supermask.learn(model(), 0.3, granularity="2:4", allocation="global")
    for part in (
        "2:4 keeps 0.5 of every tensor, not density=0.3",
        "expected allocation='layerwise', got 'global'",
        "0.weight of shape [9, 10] reads 10 inputs, not a multiple of 4, 1.weight of shape [8, 9] reads 9",
        "give exclude=['0.weight', '1.weight']",
    ):
        assert part in str(error.value)
    supermask.learn(model(), granularity="2:4", exclude=["0.weight", "1.weight"])
    with pytest.raises(ValueError, match="expected weight or 2:4, got filter"):
        supermask.learn(model(), 0.5, granularity="filter")
    with pytest.raises(ValueError, match="learn needs a density"):
        supermask.learn(model())
    with pytest.raises(ValueError, match="1 <= N < M, got 4:4"):
        supermask.learn(model(), granularity="4:4")


@pytest.mark.slow
def test_compiled_passes_choose_the_same_groups():
    model, x = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 12)
    supermask.learn(model, granularity="2:4")
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.compile(model, fullgraph=True)(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters() if p.grad is not None], expected)


@pytest.mark.parametrize(
    ("pattern", "fraction", "levels"),
    [
        ("2:4", 0.2, [3, 2]),
        ("2:4", 0.5, [2]),
        ("1:4", 0.9, [1]),
        ("1:16", 0.2, [13, 10, 8, 7, 5, 4, 3, 2, 1]),
        ("15:16", 0.5, [15]),
    ],
)
def test_patterns_of_the_levels(pattern, fraction, levels):
    config = Config(granularity=pattern, fraction=fraction)
    assert patterns(config) == [(kept, int(pattern.split(":")[1])) for kept in levels]


def test_imp_goes_by_3_of_4_to_2_of_4(tmp_path):
    run = search("imp", runs=tmp_path, granularity="2:4", rewind="3it", **QUICK)
    assert run.config.density == 0.5 and run.config.allocation == "layerwise"
    tickets = [run.load_level(level) for level in range(3)]
    assert [row["density"] for row in run.levels] == [1.0, 0.75, 0.5]
    assert run.ticket.masks == tickets[2].masks
    start = tickets[1].state_dict("start")
    for kept, (before, after) in zip((3, 2), itertools.pairwise(tickets), strict=True):
        assert after.masks.within(before.masks)
        trained = before.state_dict("final")
        for name, mask in after.masks.items():
            key = np.where(before.masks[name].numpy(), trained[name].abs().numpy(), -1.0)
            assert np.array_equal(mask.numpy(), groups_by_hand(key, 1, kept, 4))
            assert torch.equal(after.state_dict("start")[name], torch.where(mask, start[name], 0.0))


def test_edge_popup_keeps_2_of_4_of_the_weights_of_the_seed(tmp_path):
    run = search("edge-popup", runs=tmp_path, granularity="2:4", **QUICK)
    ticket = run.ticket
    assert run.summary["density"] == 0.5
    for name, mask in ticket.masks.items():
        assert bool((mask.view(len(mask), -1, 4).sum(-1) == 2).all())
        drawn = ticket.states["final"].drawn[name].tensor(name)
        assert torch.equal(ticket.state_dict("final")[name], torch.where(mask, drawn, 0.0))


@pytest.mark.parametrize("method", ["imp", "edge-popup"])
def test_bad_requests_of_the_command_line_all_at_once(method, ticket):
    words = ("search", "--method", method, "--dry-run")
    found = ticket(*words, "--granularity", "2:4", "--density", "0.3", "--allocation", "global")
    assert found.code == 2
    assert "--granularity 2:4 keeps 0.5: give that --density" in found.err
    assert "--granularity 2:4 goes with --allocation layerwise" in found.err
    found = ticket(*words, "--granularity", "3:8", "--exclude", "fc1.weight")
    assert found.code == 2
    assert "fc2.weight of shape [100, 300] reads 300 inputs" in found.err.replace("\n", " ")
    assert "--exclude fc1.weight,fc2.weight,fc3.weight" in found.err.replace("\n", " ")
    for wrong in ("filtr", "4:4", "2:4:8", "block:4y4", *(["filter"] if method == "edge-popup" else [])):
        found = ticket(*words, "--granularity", wrong)
        assert found.code == 2
        assert "or N:M with N below M" in found.err.replace("\n", " ")
    assert ticket(*words, "--granularity", "2:5", "--exclude", "fc1.weight").code == 0, "the flag that is named"


def test_rates_by_layer_do_not_go_with_groups():
    with pytest.raises(RequestError) as error:
        search("imp", granularity="2:4", output_fraction=0.1, **QUICK)
    assert "--output-fraction goes with --granularity weight, not 2:4" in error.value.problems
