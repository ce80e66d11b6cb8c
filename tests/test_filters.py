"""Filter pruning: which filters go, from scratch and from a checkpoint, and the smaller network in the end."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy
import pytest
import torch
from torch import nn

import supermask
from supermask.choosing.coupling import couple
from ticket_search import RequestError, compare, controls, search
from ticket_search.methods.filters import Config, count_filters, drop, find_filters
from ticket_search.training.sensitivity import DENSITIES, lowest

QUICK = {"epochs": 2, "threads": 1, "progress": False, "train_size": 320}


class Chain(nn.Module):
    """Two convolutions, one with a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x))))).flatten(1))


class Batches:
    """All of a data set that finding filters needs."""

    def batches(self, split: str, size: int):
        yield torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(size)


def masks_of(model: nn.Module, previous: supermask.Masks | None = None, counts=None, **flags) -> supermask.Masks:
    config = Config(**flags)
    filters = find_filters(model, Batches(), config)
    return drop(model, config, filters, counts or count_filters(config, filters), previous)


def rows(mask: torch.Tensor) -> list[int]:
    return torch.nonzero(mask.flatten(1).any(1)).flatten().tolist()


def largest(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index].item())[:count])


@pytest.mark.parametrize("seed", range(3))
def test_the_filters_of_the_largest_sums_of_magnitudes_stay(seed):
    torch.manual_seed(seed)
    model = Chain()
    masks = masks_of(model, density=0.5)
    assert rows(masks["conv1.weight"]) == largest(model.conv1.weight.abs().sum((1, 2, 3)), 3)
    assert rows(masks["conv2.weight"]) == largest(model.conv2.weight.abs().sum((1, 2, 3)), 4)
    assert bool(masks["head.weight"].all())
    assert masks["norm.weight"].nonzero().flatten().tolist() == rows(masks["conv1.weight"])
    l2 = masks_of(model, density=0.5, score="l2")
    assert rows(l2["conv2.weight"]) == largest(model.conv2.weight.square().sum((1, 2, 3)), 4)
    scales = torch.rand(6)
    model.norm.weight.data = scales.clone()
    only = masks_of(model, density=0.5, score="bn-scale", exclude=("conv2", "head"))
    assert rows(only["conv1.weight"]) == largest(scales, 3)
    assert set(only.counted()) == {"conv1.weight"}


@pytest.mark.parametrize("seed", range(3))
def test_greedy_does_not_count_weights_on_dropped_channels(seed):
    torch.manual_seed(seed)
    model = Chain()
    masks = masks_of(model, density=0.5, greedy=True)
    kept = rows(masks["conv1.weight"])
    assert kept == largest(model.conv1.weight.abs().sum((1, 2, 3)), 3)
    assert rows(masks["conv2.weight"]) == largest(model.conv2.weight.abs()[:, kept].sum((1, 2, 3)), 4)
    assert any(
        rows(masks_of(model, density=p, greedy=True)["conv2.weight"])
        != rows(masks_of(model, density=p)["conv2.weight"])
        for p in (0.2, 0.4, 0.5, 0.6, 0.8)
    )


def test_filters_of_a_residual_sum_go_together():
    from supermask.weights.architectures import find_architecture

    model = find_architecture("resnet20")(input_shape=(1, 8, 8), classes=10)
    masks = masks_of(model, density=0.5)
    shape = couple(model, supermask.find_targets(model), torch.randn(2, 1, 8, 8))
    for group in shape.groups.values():
        alive = {name: set(channel[masks[name].flatten(1).any(1)[index]].tolist()) for name, (index, channel) in
                 group.rows.items()}  # fmt: skip
        assert len({frozenset(channels) for channels in alive.values()}) == 1
        assert len(next(iter(alive.values()))) == math.floor(group.channels * 0.5 + 0.5)


def test_densities_by_layer_and_their_rounding():
    model = Chain()
    masks = masks_of(model, density=0.5, densities="conv1*=1,conv2.weight=0.3")
    assert len(rows(masks["conv1.weight"])) == 6
    assert len(rows(masks["conv2.weight"])) == 2  # 2.4
    assert len(rows(masks_of(model, density=0.5, densities="conv*=0.8")["conv2.weight"])) == 6  # 6.4


def test_the_scan_tells_what_it_found(ticket):
    words = ("search", "--method", "filters", "--epochs", "1", "--threads", "1", "--train-size", "320")
    answer = ticket(*words, "--scan", "--densities", "fc1*=0.3")
    assert answer.code == 0, answer.err
    assert "-d0.5-by-layer-s0/sensitivity.png" in answer.err.replace("\n", "")
    assert re.search(r"fc1\.weight alone: down to \d+% of its filters within 1 points of", answer.err)


def test_rounds_only_shrink_and_end_at_the_density(tmp_path):
    run = search("filters", runs=tmp_path, density=0.3, rounds=3, retrain_epochs=1, **QUICK)
    tickets = [run.load_level(level) for level in range(4)]
    widths = [[len(rows(ticket.masks[name])) for name in ("fc1.weight", "fc2.weight")] for ticket in tickets]
    for channels, kept in zip((300, 100), zip(*widths, strict=True), strict=True):
        expected = [math.floor(channels * 0.3 ** (level / 3) + 0.5) for level in range(4)]
        assert list(kept) == expected
    assert all(after.masks.within(before.masks) for before, after in itertools.pairwise(tickets))
    for before, after in itertools.pairwise(tickets):  # each goes on from the weights of the one before
        start, final = after.state_dict("start"), before.state_dict("final")
        assert all(torch.equal(start[n], final[n].masked_fill(~m, 0)) for n, m in after.masks.items())
    assert run.summary["filters_kept"] == 120
    assert run.summary["cost"]["dense_trainings"] == pytest.approx(1 + 3 / 2)
    assert (run.path / "ticket.safetensors").read_bytes() == (
        run.path / "levels" / "03" / "ticket.safetensors"
    ).read_bytes()


def test_the_smaller_network_is_the_tickets(tmp_path):
    run = search("filters", runs=tmp_path, density=0.25, **QUICK)
    small = supermask.load_compact(run.path / "compact.safetensors")
    assert [tuple(layer.weight.shape) for layer in small.modules() if isinstance(layer, nn.Linear)] == [
        (75, 64), (25, 75), (10, 25),
    ]  # fmt: skip
    x = torch.randn(7, 1, 8, 8)
    assert torch.allclose(small(x), run.ticket.model()(x), atol=1e-5)
    compact = run.summary["compact"]
    assert compact["parameters"] == 75 * 65 + 25 * 76 + 10 * 26
    assert compact["macs"] == 75 * 64 + 25 * 75 + 10 * 25
    assert compact["share_of_parameters"] == compact["parameters"] / run.summary["parameters"]
    assert compact["bytes"] == (run.path / "compact.safetensors").stat().st_size
    assert compact["test_accuracy"] == pytest.approx(run.summary["test_accuracy"], abs=0.3)


def test_a_checkpoint_is_not_trained_again(tmp_path):
    dense = search("dense", runs=tmp_path, **QUICK)
    path = tmp_path / "trained.pt"
    torch.save(dense.ticket.state_dict(), path)
    run = search("filters", runs=tmp_path, weights=str(path), retrain_epochs=1, retrain_lr=1e-3, **QUICK)
    assert run.levels[0]["test_accuracy"] == dense.summary["test_accuracy"]
    assert run.summary["cost"]["dense_trainings"] == 0.5
    assert {row["learning-rate"] for row in run.metrics if "learning-rate" in row} == {1e-3}
    with pytest.raises(RequestError, match=r"\(--init keep, as with --weights\).*: reinit cannot be made"):
        controls(run.path, progress=False)


def test_the_command_shows_a_network_that_came_trained(tmp_path, ticket):
    torch.save(search("dense", runs=tmp_path, **QUICK).ticket.state_dict(), tmp_path / "trained.pt")
    answer = ticket("search", "--method", "filters", "--weights", "trained.pt", "--epochs", "2", "--threads", "1")
    assert answer.code == 0, answer.err
    assert "filters kept" in answer.out and "smaller network" in answer.out


@pytest.mark.parametrize(("flags", "steps"), [(("--retrain-epochs", "3"), 6), (("--retrain-epochs", "15"), 0)])
def test_a_retraining_of_a_handful_of_steps_is_told_before_it(flags, steps, ticket):
    answer = ticket("search", "--method", "filters", "--epochs", "1", "--train-size", "320", *flags)
    told = f"the retraining after pruning has {steps} steps only: --retrain-epochs lengthens it"
    assert (told in answer.err) == bool(steps) and answer.code == 0, answer.err
    assert bool(steps) or "steps only" not in answer.err


def test_sparsity_is_density_to_the_scan_too(ticket):
    answer = ticket("search", "--method", "filters", "--tolerance", "5", "--sparsity", "0.3")
    assert answer.code == 2 and "--density and --tolerance: the scan chooses the densities" in answer.err


def test_retraining_goes_on_at_the_last_rate_for_a_quarter_of_the_epochs(tmp_path):
    flags = {"epochs": 5, "schedule": "step", "milestones": "2,4", "lr": 0.1, "threads": 1, "progress": False}
    run = search("filters", runs=tmp_path, **flags)
    rates = [row["learning-rate"] for row in run.metrics if row["stage"] == "level-01" and "learning-rate" in row]
    assert len(rates) == 2
    assert rates == pytest.approx([0.001, 0.001])


def test_fresh_weights_are_the_control_of_whole_filters(tmp_path):
    run = search("filters", runs=tmp_path, density=0.3, **QUICK)
    (row,) = controls(run.path, progress=False)
    assert row["control"] == "reinit"
    assert row["kept"] == run.summary["kept"]
    control = supermask.load(run.path / row["path"] / "ticket.safetensors")
    assert control.masks == run.ticket.masks
    (group,) = compare([run.path])["groups"]
    assert "its training continues from trained weights" in group["verdict"]["as_early"]["because"]
    assert "not asked where whole filters" in group["verdict"]["positions"]["because"]
    drawn = control.states["start"].drawn["fc1.weight"]
    first = run.load_level(0).states["start"].drawn["fc1.weight"]
    assert (drawn.init, drawn.seed != first.seed) == (first.init, True)


def test_the_scan_is_what_dropping_one_layer_by_hand_gives(tmp_path):
    from ticket_search.data.sources import read_samples
    from ticket_search.training.evaluation import evaluate

    run = search("filters", runs=tmp_path, scan=True, **QUICK)
    found = json.loads((run.path / "sensitivity.json").read_text())
    assert found["dense"] == run.levels[0]["val_accuracy"]
    assert list(found["accuracies"]) == ["fc1.weight", "fc2.weight"]
    samples = read_samples("digits", None, 0)
    for name, accuracies in found["accuracies"].items():
        for density, accuracy in zip(DENSITIES, accuracies, strict=True):
            model = run.load_level(0).model()
            layer = model.get_submodule(name.removesuffix(".weight"))
            kept = largest(layer.weight.abs().sum(1), math.floor(len(layer.weight) * density + 0.5))
            for row in set(range(len(layer.weight))) - set(kept):
                layer.weight.data[row], layer.bias.data[row] = 0, 0
            assert evaluate(model, samples, "validation").value == accuracy
    assert (run.path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    chosen = search("filters", runs=tmp_path, tolerance=5.0, **QUICK)
    assert chosen.path.name == "filters-lenet-300-100-digits-tolerance5-s0"
    widths = {n: len(rows(chosen.ticket.masks[n])) for n in found["accuracies"]}
    channels = {"fc1.weight": 300, "fc2.weight": 100}
    for name, accuracies in found["accuracies"].items():
        density = lowest(accuracies, found["dense"], 5.0)
        assert widths[name] == math.floor(channels[name] * density + 0.5)
        assert density < 1
    bare = search("filters", runs=tmp_path, tolerance=0.0, name="nothing", **QUICK)
    assert bare.summary["density"] >= chosen.summary["density"]


def test_the_lowest_density_stops_at_the_first_loss():
    accuracies = [90.0, 89.6, 80.0, 90.0, 90.0, 90.0, 90.0, 90.0, 90.0]
    assert lowest(accuracies, 90.0, 0.5) == 0.8
    assert lowest([50.0] * 9, 90.0, 0.5) == 1.0
    assert lowest([90.0] * 9, 90.0, 0.0) == 0.1


def test_a_model_of_ones_own_ends_in_a_smaller_one(tmp_path):
    x = numpy.random.default_rng(0).normal(size=(450, 1, 8, 8)).astype("float32")
    y = (x.mean((1, 2, 3)) > 0).astype("int64")
    run = search("filters", model=Chain, data=(x, y), runs=tmp_path, exclude="head", **QUICK)
    small = supermask.load_compact(run.path / "compact.safetensors", model=Chain())
    assert (small.conv1.out_channels, small.conv2.out_channels, small.head.in_features) == (3, 4, 64)
    inputs = torch.randn(5, 1, 8, 8)
    assert torch.allclose(small(inputs), run.ticket.apply_to(Chain()).eval()(inputs), atol=1e-5)
    with pytest.raises(supermask.TicketError, match="or give the whole network as model="):
        supermask.load_compact(run.path / "compact.safetensors")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"densities": "fc1=2,fc2"}, "--densities fc1=2: expected GLOB=DENSITY.*--densities fc2: expected GLOB"),
        ({"densities": "fc9*=0.5"}, "'fc9.*' fits no tensor.*layers: fc1.weight, fc2.weight"),
        ({"densities": "fc3*=0.5"}, "fits fc3.weight, which has no units of its own"),
        ({"density": 0.004}, "keep none of the 100 of fc2.weight: a layer needs a filter"),
        ({"density": 0.5, "tolerance": 1}, "--density and --tolerance"),
        ({"greedy": True, "score": "random"}, "--greedy goes with --score magnitude or l2"),
        ({"score": "bn-scale"}, "fc1.weight: no batch norm stands behind it"),
        ({"schedule": "cosine"}, "--schedule cosine ends at a rate of 0.*give --retrain-lr"),
        ({"mask_seed": 1}, "--mask-seed goes with --score random"),
        ({"exclude": "fc1,fc2"}, "no filters or hidden units that can be dropped"),
        ({"rounds": 0}, "--rounds 0: expected"),
    ],
)
def test_what_cannot_be_is_said_before_training(flags, problem, tmp_path):
    with pytest.raises(RequestError) as error:
        search("filters", runs=tmp_path, **QUICK, **flags)
    assert re.search(problem, "; ".join(error.value.problems))
    assert not list(tmp_path.iterdir())
