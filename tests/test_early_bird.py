"""Early-bird tickets: when they are drawn and which, against a training written out; and what is said where none is."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from method_tests import count_steps
from torch import nn

import supermask
from supermask.masks.random_numbers import permutation
from supermask.weights.architectures import find_architecture
from ticket_search import Interrupted, RequestError, controls, resume, search, train
from ticket_search.methods.early_bird import Config, choose
from ticket_search.training.units import find_filters

# Masks of several epochs, of which those in the end are alike.
SHORT = {"epochs": 7, "lr": 0.05, "memory": 3, "settled": 0.06, "latest": "7ep"}
# So that sums in another order rank the same.
EXACT = {"precision": "fp64"}


def train_by_hand(run, penalty: float, score) -> tuple[list[float], dict[str, torch.Tensor], list[int]]:
    """A training written out: the largest distances, and the weights and the places kept where the ticket is drawn."""
    config = run.config
    model = run.setup.make_model(config).double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    queue: list[set[int]] = []
    told = []
    for epoch in range(config.epochs):
        order = permutation(run.data.train_size, config.seeds["order"], f"order/0/{epoch}")
        for x, y in run.data.train_batches(order, config.batch_size, 0, epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.double()), y)
            (loss + penalty * sum(norm.weight.abs().sum() for norm in norms)).backward()
            optimizer.step()
        ranked = score(model).tolist()
        count = int(config.density * len(ranked) + 0.5)
        kept = set(sorted(range(len(ranked)), key=lambda place: -ranked[place])[:count])
        queue = [*queue, kept][-config.memory :]
        differ = [len(kept ^ other) / len(ranked) for other in queue[:-1]]
        told += [max(differ)] if differ else []
        if len(queue) == config.memory and max(differ) <= config.settled:
            break
    return told, {name: tensor.clone() for name, tensor in model.state_dict().items()}, sorted(kept)


def scales(model) -> torch.Tensor:
    return torch.cat([model.norm1.weight, model.norm2.weight]).detach().abs()


def magnitudes(model) -> torch.Tensor:
    return torch.cat([model.get_parameter(f"fc{layer}.weight").detach().abs().flatten() for layer in (1, 2, 3)])


@pytest.fixture(scope="module")
def find(tmp_path_factory):
    """The run of a search with these flags, which is made once: `find(then="rewind")`."""
    more = {"threads": 1, "train_size": 320, "progress": False}
    return functools.cache(
        lambda **flags: search("early-bird", runs=tmp_path_factory.mktemp("runs"), **SHORT, **more, **flags)
    )


@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_the_ticket_is_that_of_a_training_written_out(find, penalty):
    run = find(**EXACT, norm_penalty=penalty)
    told, weights, kept = train_by_hand(run, penalty, scales)
    assert run.summary["settled"]
    logged = [row["mask/distance"] for row in run.metrics if "mask/distance" in row]
    assert logged == told and len(told) > 2, "neither at the first mask that could be nor never"
    assert told[0] > SHORT["settled"] >= told[-1] == run.summary["mask_distance"]
    per_epoch = len(list(run.data.train_batches(permutation(run.data.train_size, 0, "x"), run.config.batch_size, 0, 0)))
    step = (len(told) + 1) * per_epoch
    assert (run.summary["drawn_at_step"], run.summary["drawn_at_epoch"]) == (step, len(told) + 1)
    masks = run.ticket.masks
    rows = [masks["fc1.weight"].any(1), masks["fc2.weight"].any(1)]
    assert torch.cat(rows).nonzero().flatten().tolist() == kept
    for layer, row in enumerate(rows, start=1):
        assert torch.equal(masks[f"fc{layer}.weight"], row[:, None].expand_as(masks[f"fc{layer}.weight"]))
        assert torch.equal(masks[f"norm{layer}.weight"], row) and torch.equal(masks[f"norm{layer}.bias"], row)
    assert masks["fc3.weight"].all(), "the outputs stay"
    assert (run.summary["filters"], run.summary["filters_kept"]) == (400, 200)
    # The weights are those of that step, and the training goes on from there.
    drawn = run.load_rewind_point().state_dict()
    for name, tensor in run.ticket.state_dict("start").items():
        expected = weights[name] if name not in masks else torch.where(masks[name], weights[name], 0.0)
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(tensor, drawn[name] if name not in masks else torch.where(masks[name], drawn[name], 0.0))
    assert run.summary["cost"]["steps"] == SHORT["epochs"] * per_epoch
    assert run.summary["cost"]["dense_trainings"] == 1.0
    stages = {row["stage"]: row["step"] for row in run.metrics}
    assert stages == {"drawing": step, "training": SHORT["epochs"] * per_epoch}
    small = supermask.load_compact(run.path / "compact.safetensors")
    assert small.fc1.out_features + small.fc2.out_features == 200


def test_the_penalty_decides(find):
    runs = [find(**EXACT, norm_penalty=penalty) for penalty in (0.0, 0.02)]
    one, two = (run.load_rewind_point().state_dict() for run in runs)
    assert two["norm1.weight"].abs().sum() < one["norm1.weight"].abs().sum()


@pytest.mark.parametrize("model", ["lenet-300-100", pytest.param("lenet-300-100-bn", marks=pytest.mark.slow)])
def test_masks_of_single_weights_need_no_norms(quick, model):
    flags = {**SHORT, "settled": 0.05, "density": 0.2, "model": model, "granularity": "weight"}
    run = quick("early-bird", **flags, **EXACT)
    told, _, kept = train_by_hand(run, 0.0, magnitudes)
    assert run.summary["settled"]
    assert [row["mask/distance"] for row in run.metrics if "mask/distance" in row] == told
    masks = run.ticket.masks
    assert torch.cat([mask.flatten() for mask in masks.values()]).nonzero().flatten().tolist() == kept
    assert "filters" not in run.summary and not (run.path / "compact.safetensors").exists()
    run = quick("early-bird", **flags, folder="single")
    masks = run.ticket.masks
    rows = controls(run.path, kinds=["reinit", "shuffle"], progress=False)
    assert [row["kept"] for row in rows] == [masks.kept] * 2
    shuffled = supermask.load(run.path / rows[1]["path"] / "ticket.safetensors")
    weights = run.load_rewind_point().state_dict()
    for name, mask in shuffled.masks.items():
        assert not torch.equal(mask, masks[name])
        assert torch.equal(shuffled.state_dict("start")[name], torch.where(mask, weights[name], 0.0))


def test_masks_that_never_settle_are_drawn_at_the_latest_and_said_to_be(ticket):
    words = "search --method early-bird --epochs 6 --train-size 320 --threads 1 --settled 0 --latest 4ep --name never"
    answer = ticket(*words.split())
    assert answer.code == 0, answer.err
    err = " ".join(answer.err.split())
    assert re.search(r"have not settled until epoch 4, .* differs from the 3 before in up to [\d.]+%", err)
    assert re.search(r"ticket drawn +at epoch 4, when the masks had not settled \(largest distance", answer.out)
    run = resume("never", progress=False)
    assert (run.summary["settled"], run.summary["drawn_at_epoch"]) == (False, 4)
    assert run.summary["cost"]["dense_trainings"] == 1.0
    shared = {"runs": "runs", "threads": 1, "train_size": 320, "progress": False}
    first = search("early-bird", epochs=2, latest="1it", name="first", **shared)
    assert (first.summary["settled"], first.summary["drawn_at_step"]) == (False, 1)
    assert "mask_distance" not in first.summary
    # A mask out of its turn, one step after the second, is alike, and is not said to have settled.
    flags = {"epochs": 3, "memory": 2, "settled": 0.04, "latest": "5it", "name": "early"}
    early = search("early-bird", **shared, **flags)
    assert early.summary["mask_distance"] <= 0.04 and not early.summary["settled"]


def test_drawn_at_the_end_nothing_is_left_to_train(quick):
    run = quick("early-bird", epochs=2, latest="2ep")
    assert run.summary["drawn_at_epoch"] == 2
    start, final = (run.ticket.state_dict(state) for state in ("start", "final"))
    assert all(torch.equal(tensor, final[name]) for name, tensor in start.items())


@pytest.mark.slow
def test_rewinding_starts_again_and_costs_it(find):
    keep, rewind = (find(then=then) for then in ("keep", "rewind"))
    assert keep.ticket.masks == rewind.ticket.masks
    model = rewind.setup.make_model(rewind.config)
    for name, tensor in rewind.ticket.state_dict("start").items():
        first = model.state_dict()[name]
        assert torch.equal(tensor, first if name not in rewind.ticket.masks else first * rewind.ticket.masks[name])
    drawn = rewind.summary["drawn_at_step"]
    assert drawn == keep.summary["drawn_at_step"]
    assert rewind.summary["cost"]["steps"] == keep.summary["cost"]["steps"] + drawn
    assert "rewound_to" not in rewind.ticket.meta and keep.ticket.meta["rewound_to"] == drawn


@pytest.mark.parametrize("then", ["keep", "rewind"])
def test_training_the_ticket_again_is_its_own_training(find, tmp_path, then):
    run = find(then=then)
    again = train(run, runs=tmp_path / "again", progress=False)
    assert supermask.fingerprint(again.ticket.state_dict()) == supermask.fingerprint(run.ticket.state_dict())
    assert again.summary["test_accuracy"] == run.summary["test_accuracy"]


@pytest.mark.parametrize("granularity", ["filter", "weight"])
def test_the_masks_before_a_stop_count_after_it(granularity, quick, find):
    whole = find(then="keep") if granularity == "filter" else find(granularity=granularity)
    step = whole.summary["drawn_at_step"]
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, step - 1, step + 2)
        with pytest.raises(Interrupted) as stop:
            quick("early-bird", **SHORT, granularity=granularity)
        with pytest.raises(Interrupted):
            resume(stop.value.path, progress=False)
    again = resume(stop.value.path, progress=False)
    assert (again.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert again.summary["mask_distance"] == whole.summary["mask_distance"]


class Samples:
    """All of a data set that finding filters needs."""

    def batches(self, split: str, size: int):
        yield torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(size)


def test_where_a_sum_ties_norms_together_their_mean_counts():
    model = find_architecture("resnet20")(input_shape=(1, 8, 8), classes=10)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.randn(module.num_features, generator=generator)
    config = Config(density=0.4)
    masks = choose(model, config, find_filters(model, Samples(), config, normed=True))
    # By hand: the sums of a stage tie its blocks' second norms and that of the shortcut, or of the stem, together.
    scales: list[tuple[str, torch.Tensor]] = []
    for stage in range(3):
        blocks = [model.stages[stage][block] for block in range(3)]
        first = model.norm if stage == 0 else blocks[0].shortcut[1]
        tied = [first, *(block.norm2 for block in blocks)]
        mean = sum(norm.weight.detach().abs() for norm in tied) / 4
        scales.append(("stem" if stage == 0 else f"stages.{stage}.0.shortcut.0", mean))
        scales += [(f"stages.{stage}.{i}.conv1", block.norm1.weight.detach().abs()) for i, block in enumerate(blocks)]
    every = sorted(torch.cat([scale for _, scale in scales]).tolist(), reverse=True)
    bound = every[int(0.4 * len(every) + 0.5) - 1]
    for name, scale in scales:
        assert masks[f"{name}.weight"].flatten(1).any(1).tolist() == (scale >= bound).tolist(), name
    assert torch.equal(masks["stages.1.2.conv2.weight"].flatten(1).any(1), masks["stages.1.0.norm2.weight"])


def test_a_layer_keeps_a_filter_though_all_of_its_scales_are_small():
    model = find_architecture("lenet-300-100-bn")(input_shape=(1, 8, 8), classes=10)
    model.norm2.weight.data = torch.linspace(1e-4, 2e-4, 100)
    config = Config(density=0.25)
    masks = choose(model, config, find_filters(model, Samples(), config, normed=True))
    assert masks["norm2.weight"].nonzero().flatten().tolist() == [99]
    assert int(masks["norm1.weight"].sum()) == 99
    config = Config(density=0.25, allocation="layerwise")
    masks = choose(model, config, find_filters(model, Samples(), config, normed=True))
    assert (int(masks["norm1.weight"].sum()), int(masks["norm2.weight"].sum())) == (75, 25)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"model": "lenet-300-100"}, "no batch norm stands behind it.*--granularity weight, a variant that is not the"),
        ({"density": 0.001}, "--density 0.001 keeps 0 of the 400 filters and hidden units, and each of 2 layers"),
        ({"granularity": "weight", "norm_penalty": 0.1}, "--norm-penalty goes with --granularity filter"),
        ({"granularity": "weight", "density": 1e-6}, "--density 1e-06 keeps none of the 50,200 weights"),
        ({"check_every": "0"}, "--check-every 0: expected steps or epochs"),
        ({"latest": "0it"}, "--latest 0: expected steps or epochs"),
        ({"latest": "4ep"}, "--latest 4ep: expected at most the 30 steps"),
        ({"memory": 1}, "--memory 1"),
        ({"granularity": "2:4"}, "--granularity 2:4"),
    ],
)
def test_what_cannot_be_is_refused_before_training(flags, problem, tmp_path):
    with pytest.raises(RequestError) as error:
        search("early-bird", runs=tmp_path, progress=False, epochs=3, threads=1, **flags)
    assert re.search(problem, "; ".join(error.value.problems))
    assert not list(tmp_path.iterdir())
