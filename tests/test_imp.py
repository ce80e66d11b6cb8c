"""Iterative magnitude pruning: the densities of its levels, and what comes after each pruning."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from method_tests import count_steps
from products import combine, thin

import supermask
from supermask.selection.top_k import count_kept
from ticket_search import Interrupted, RequestError, compare, controls, resume, search, train
from ticket_search.contract.flags import make_config
from ticket_search.methods.imp import Config
from ticket_search.runs.progress import Progress

LEVELS = (0.51, 0.13, 0.049)
SHORT = {"epochs": 2, "levels": LEVELS, "optimizer": "sgd", "lr": 0.1, "model_args": "width=0.2"}


@pytest.mark.parametrize("allocation", ["global", "layerwise", "module"])
def test_each_level_has_exactly_the_density_asked(allocation, quick):
    run = quick("imp", **SHORT, allocation=allocation, include=["*weight"] if allocation == "module" else [])
    tickets = [run.load_level(level) for level in range(1, 4)]
    for density, before, ticket in zip(LEVELS, [run.load_level(0), *tickets], tickets, strict=False):
        masks = ticket.masks
        if allocation == "layerwise":
            assert all(int(mask.sum()) == count_kept(density, mask.numel()) for mask in masks.values())
        else:
            assert masks.kept == count_kept(density, masks.size)
        assert not any((mask & ~before.masks[name]).any() for name, mask in masks.items()), "levels only shrink"
        # The largest of what was trained are kept: none that is dropped here is larger than one that is kept.
        trained = before.state_dict("final")
        if allocation == "global":
            kept = torch.cat([trained[name][mask].abs() for name, mask in masks.items()])
            gone = torch.cat([trained[name][before.masks[name] & ~mask].abs() for name, mask in masks.items()])
            assert kept.min() >= gone.max()
    assert [row["density"] for row in run.levels[1:]] == [ticket.masks.density for ticket in tickets]


def trained(quick, then: str, **flags):
    flags = {**SHORT, "epochs": 3, "levels": (0.5, 0.2), "rewind": "0", **flags}
    return quick("imp", then=then, folder=then, **flags)


def test_the_three_ways_are_the_same_or_not_by_the_schedule(quick):
    constant = {then: trained(quick, then) for then in ("rewind", "lr-rewind", "fine-tune")}
    one, two = (constant[then].ticket for then in ("lr-rewind", "fine-tune"))
    assert one.masks == two.masks
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    assert constant["rewind"].ticket.masks != one.masks
    falling = {"schedule": "step", "milestones": (2,), "name": "falling"}
    found = [trained(quick, then, **falling).ticket for then in ("rewind", "lr-rewind", "fine-tune")]
    assert len({supermask.fingerprint(ticket.state_dict()) for ticket in found}) == 3


@pytest.mark.parametrize("then", ["lr-rewind", "fine-tune"])
def test_a_level_starts_from_what_was_trained(then, quick):
    run = trained(quick, then)
    for level in (1, 2):
        before, ticket = run.load_level(level - 1), run.load_level(level)
        end, start = before.state_dict("final"), ticket.state_dict("start")
        for name, tensor in start.items():
            mask = ticket.masks.get(name)
            assert torch.equal(tensor, end[name] if mask is None else end[name] * mask), name
        assert run.levels[level]["retrained"]
    answer = compare([run.path]).groups[0].verdict.as_early
    assert answer.answer == "unknown" and "continues from trained weights" in answer.because


def test_a_stopped_one_goes_on_as_if_it_had_not_been(quick, monkeypatch):
    flags = {"schedule": "step", "milestones": (2,), "retrain_epochs": 2}
    whole = trained(quick, "fine-tune", name="whole", **flags)
    count = iter(range(10**6))

    def stop(self, step):
        if next(count) == 22:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance_to", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(quick, "fine-tune", name="stopped", **flags)
    again = resume(whole.path.parent / "stopped", progress=False)
    assert again.ticket.masks == whole.ticket.masks
    assert supermask.fingerprint(again.ticket.state_dict()) == supermask.fingerprint(whole.ticket.state_dict())


def test_ways_are_told_apart_by_name(quick):
    runs = [trained(quick, then) for then in ("rewind", "lr-rewind")]
    labels = {group.label for group in compare([run.path for run in runs]).groups}
    assert labels == {"imp then=rewind", "imp then=lr-rewind"}, "the default, which no record names, has its name"


def test_what_does_not_go_together_is_said_at_once(tmp_path):
    flags = {
        "levels": (0.1, 0.3), "density": 0.2, "fraction": 0.5, "then": "lr-rewind", "retrain_lr": 0.1,
        "rewind_optimizer": "restore", "rewind": "5it",
    }  # fmt: skip
    with pytest.raises(RequestError) as error:
        search("imp", runs=tmp_path, progress=False, **flags)
    text = str(error.value)
    for part in (
        "--fraction and --levels 0.1,0.3: the levels say what is dropped",
        "--density 0.2 and --levels 0.1,0.3: the last level is the density",
        "--levels 0.1,0.3: expected each density below the one before",
        "--retrain-lr goes with --then fine-tune",
        "--rewind-optimizer restore goes with --then rewind",
    ):
        assert part in text, text
    assert make_config(Config, {"levels": "0.5,0.1"}).density == 0.1
    with pytest.raises(RequestError, match="give --retrain-lr"):
        make_config(Config, {"then": "fine-tune", "schedule": "cosine"})


def test_a_density_that_keeps_nothing_is_refused(tmp_path):
    with pytest.raises(RequestError, match="keeps none of the 50,200 weights"):
        search("imp", levels=(0.5, 1e-7), runs=tmp_path, progress=False)


# --- units of several weights

# Of LeNet-300-100 over the digits: the weights of a unit, by tensor and number.
SHAPES = {
    "filter": {name: lambda w: [w[row] for row in range(len(w))] for name in ("fc1.weight", "fc2.weight")},
    "channel": {
        name: lambda w: [w[:, column] for column in range(w.shape[1])]
        for name in ("fc1.weight", "fc2.weight", "fc3.weight")
    },
    "block:2x4": {
        name: lambda w: [w[r : r + 2, c : c + 4] for r in range(0, w.shape[0], 2) for c in range(0, w.shape[1], 4)]
        for name in ("fc1.weight", "fc2.weight", "fc3.weight")
    },
}
UNITS = {"epochs": 2, "optimizer": "sgd", "lr": 0.1, "levels": (0.5, 0.21, 0.06)}
FEW_UNITS = {**UNITS, "model_args": "width=0.2"}


def alive(cut, tensor: torch.Tensor) -> list[bool]:
    """Of each unit whether it is kept; that it is kept or dropped as a whole is checked on the way."""
    found = [(bool(unit.all()), bool(unit.any())) for unit in cut(tensor)]
    assert all(whole == some for whole, some in found), "a unit is kept or dropped as a whole"
    return [whole for whole, _ in found]


def best_units(cuts, trained, before, counts) -> dict[str, list[bool]]:
    """The units of the largest sums of magnitudes: of each tensor, or where `counts` is a number of all together."""
    ranked = []
    for tensor, (name, cut) in enumerate(cuts.items()):
        sums = [float(unit.abs().double().sum()) for unit in cut(trained[name])]
        ranked.append([(-total, tensor, place) for place, total in enumerate(sums) if before[name][place]])
    if isinstance(counts, int):
        chosen = sorted(itertools.chain(*ranked))[:counts]
    else:
        chosen = [unit for each, name in zip(ranked, cuts, strict=True) for unit in sorted(each)[: counts[name]]]
    kept = {(tensor, place) for _, tensor, place in chosen}
    return {name: [(tensor, place) in kept for place in range(len(before[name]))] for tensor, name in enumerate(cuts)}


@combine(shape=SHAPES, rewind=["0", "3it"])
def test_units_are_kept_as_a_whole_and_are_the_largest_at_every_level(shape, rewind, quick):
    run = quick("imp", granularity=shape, rewind=rewind, **FEW_UNITS)
    cuts = SHAPES[shape]
    assert run.config.allocation == ("global" if shape.startswith("block") else "layerwise")
    point = run.load_rewind_point().state_dict() if rewind != "0" else run.load_level(0).state_dict("start")
    before = {name: [True] * len(cut(point[name])) for name, cut in cuts.items()}
    sizes = {name: len(units) for name, units in before.items()}
    for number, density in enumerate(UNITS["levels"], start=1):
        ticket, trained = run.load_level(number), run.load_level(number - 1).state_dict()
        kept = {name: alive(cut, ticket.masks[name]) for name, cut in cuts.items()}
        counts = {name: math.floor(density * size + 0.5) for name, size in sizes.items()}
        if run.config.allocation == "global":
            counts = math.floor(density * sum(sizes.values()) + 0.5)
        assert kept == best_units(cuts, trained, before, counts)
        row, name = run.levels[number], "filters" if shape == "filter" else "units"
        assert row["nominal_density"] == density and row[name] == sum(sizes.values())
        assert row[f"{name}_kept"] == sum(map(sum, kept.values()))
        assert ticket.masks.within(run.load_level(number - 1).masks)
        for key, tensor in ticket.state_dict("start").items():
            mask = ticket.masks.get(key)
            assert torch.equal(tensor, point[key] if mask is None else torch.where(mask, point[key], 0.0)), key
        assert all(
            not tensor[~ticket.masks[key]].any() for key, tensor in ticket.state_dict().items() if key in ticket.masks
        )
        before = kept
    assert run.ticket.masks == run.load_level(3).masks


def test_filters_go_with_their_bias_and_leave_a_smaller_network(quick):
    run = quick("imp", granularity="filter", **UNITS)
    masks = run.ticket.masks
    for layer, units in ((1, 18), (2, 6)):
        row = masks[f"fc{layer}.weight"].any(1)
        assert int(row.sum()) == units and torch.equal(masks[f"fc{layer}.bias"], row)
    assert masks["fc3.weight"].all()
    small = supermask.load_compact(run.path / "compact.safetensors")
    assert (small.fc1.out_features, small.fc2.out_features) == (18, 6)
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(small(x), run.ticket.model()(x), atol=1e-5)
    assert run.summary["compact"]["parameters"] == 18 * 65 + 6 * 19 + 10 * 7
    assert run.load_level(0).masks.keys() == masks.keys(), "levels compare"
    assert {
        row["mask/changed"] > 0 for row in run.metrics if row.get("stage") != "level-00" and "mask/changed" in row
    } == {True}


def test_of_filters_ranked_together_each_layer_keeps_one(quick):
    run = quick("imp", granularity="filter", allocation="global", **{**UNITS, "levels": (0.2, 0.01)})
    kept = [int(run.ticket.masks[f"fc{layer}.weight"].any(1).sum()) for layer in (1, 2)]
    assert sum(kept) == 4 and min(kept) >= 1
    assert run.levels[-1]["filters_kept"] == 4


def test_without_levels_each_drops_a_fraction_of_the_units(quick):
    flags = {"epochs": 1, "granularity": "block:2x2", "fraction": 0.3, "density": 0.2, "model_args": "width=0.2"}
    run = quick("imp", **flags)
    units = run.summary["weights"] // 4
    nominal = [0.7, 0.7**2, 0.7**3, 0.7**4, 0.2]
    assert [row["nominal_density"] for row in run.levels[1:]] == pytest.approx(nominal)
    assert [row["units_kept"] for row in run.levels[1:]] == [math.floor(density * units + 0.5) for density in nominal]
    assert [row["kept"] for row in run.levels[1:]] == [4 * row["units_kept"] for row in run.levels[1:]]
    assert len(quick("imp", folder="joined", **{**flags, "density": 0.34}).levels) == 1 + 3, (
        "a last short step is joined"
    )
    assert len(quick("imp", folder="whole", **{**flags, "density": 1.0}).levels) == 1


@pytest.mark.parametrize("shape", ["filter", pytest.param("block:2x4", marks=pytest.mark.slow)])
def test_units_survive_a_stop(shape, quick):
    flags = {**FEW_UNITS, "granularity": shape, "rewind": "3it", "rewind_optimizer": "restore"}
    whole = quick("imp", name="whole", **flags)
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, 4, 21)
        with pytest.raises(Interrupted) as stop:
            quick("imp", name="stopped", **flags)
        with pytest.raises(Interrupted):
            resume(stop.value.path, progress=False)
    again = resume(stop.value.path, progress=False)
    assert (again.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()


@pytest.mark.parametrize("shape", thin(SHAPES, 3))
def test_controls_of_units_do_not_move_single_weights(shape, quick, tmp_path):
    run = quick("imp", granularity=shape, rewind="3it", **{**FEW_UNITS, "levels": (0.3,)})
    with pytest.raises(RequestError, match=f"keeps units of {shape}: shuffle would move single weights"):
        controls(run.path, ["shuffle"], progress=False)
    (row,) = controls(run.path, progress=False)
    assert row["control"] == "reinit" and row["kept"] == run.summary["kept"]
    fresh = supermask.load(run.path / row["path"] / "ticket.safetensors")
    assert fresh.masks == run.ticket.masks
    assert not torch.equal(fresh.state_dict("start")["fc1.weight"], run.ticket.state_dict("start")["fc1.weight"])
    again = train(run, runs=tmp_path / "again", progress=False)
    assert again.ticket.masks == run.ticket.masks


def test_units_from_the_shell(ticket):
    words = ["search", "--method", "imp", "--granularity", "filter", "--levels", "0.5,0.125", "--epochs", "1",
             "--train-size", "320"]  # fmt: skip
    plan = ticket(*words, "--dry-run")
    assert plan.code == 0 and "0.1250" in plan.out, plan.err
    assert "6,275" not in plan.out, "an eighth of the filters is no eighth of the weights"
    answer = ticket(*words)
    assert answer.code == 0, answer.err
    assert re.search(r"2 .* 51 of 400 \(asked 0\.125\)", answer.out), answer.out
    refused = ticket("search", "--method", "imp", "--granularity", "block:4x4", "--dry-run")
    assert refused.code == 2 and "fc3.weight of shape [10, 100] cannot be cut into blocks '4x4'" in refused.err
    cut = ticket("search", "--method", "imp", "--granularity", "channel", "--density", "0.002", "--fraction", "0.99",
                 "--epochs", "1", "--train-size", "320", "--name", "cut")  # fmt: skip
    assert cut.code == 0 and "keeps no weight of" in cut.err, cut.err
    assert "on a path from input to output" in " ".join(cut.err.split()), "said before a level is trained"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            {"granularity": "filter", "density": 0.003},
            "--density 0.003 keeps no filter of fc2.weight: each layer needs",
        ),
        (
            {"granularity": "filter", "density": 0.003, "allocation": "global"},
            r"keeps 1 of the 400 units \(filter\), and 2 are needed",
        ),
        ({"granularity": "channel", "density": 1e-4}, r"keeps 0 of the 464 units \(channel\), and 1 are needed"),
        ({"granularity": "block:7x7"}, "--granularity block:7x7: fc1.weight of shape .* cannot be cut into blocks"),
        ({"granularity": "blok:7x7"}, "expected weight, filter, channel, block:4x4, or N:M"),
        ({"granularity": "filter", "allocation": "module"}, "--allocation module goes with --granularity weight"),
        ({"granularity": "filter", "conv_fraction": 0.1}, "--conv-fraction goes with --granularity weight, not filter"),
        ({"granularity": "2:4", "levels": (0.7, 0.5)}, "goes with units of one density, not 2:4"),
        ({"granularity": "filter", "exclude": ["fc9"]}, "fc9"),
        ({"score": "magnitud"}, "did you mean 'magnitude'"),
        ({"score": "synflow"}, "--score synflow: expected magnitude, l2"),
        ({"samples_per_class": 3}, "--samples-per-class goes with --score snip"),
        ({"mask_seed": 3}, "--mask-seed goes with --score"),
    ],
)
def test_what_cannot_be_is_refused_before_training(flags, problem, tmp_path):
    with pytest.raises(RequestError) as error:
        search("imp", runs=tmp_path, progress=False, epochs=1, threads=1, **flags)
    assert re.search(problem, "; ".join(error.value.problems)), error.value.problems
    assert not list(tmp_path.iterdir())


# --- scores


@pytest.mark.parametrize(("then", "rewind"), [("rewind", "0"), ("rewind", "3it"), ("lr-rewind", "0")])
def test_every_level_compares_with_what_it_goes_back_to(then, rewind, quick):
    name = "magnitude-increase-same-sign"
    run = quick("imp", score=name, then=then, rewind=rewind, **{**SHORT, "levels": (0.5, 0.2)})
    start = run.load_level(0).state_dict("start") if rewind == "0" else run.load_rewind_point().state_dict()
    for number, density in ((1, 0.5), (2, 0.2)):
        before = run.load_level(number - 1)
        scores, alive = [], []
        for key, mask in before.masks.items():
            one, two = start[key].numpy().ravel(), before.state_dict()[key].numpy().ravel()
            scores.append(np.where(np.sign(one) == np.sign(two), np.abs(two) - np.abs(one), np.float32(0)))
            alive.append(mask.numpy().ravel())
        joint = np.where(np.concatenate(alive), np.concatenate(scores), -np.inf)
        order = np.argsort(-joint, kind="stable")[: count_kept(density, len(joint))]
        found = torch.cat([mask.flatten() for mask in run.load_level(number).masks.values()])
        assert sorted(order.tolist()) == found.nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("score", "few"),
    [
        ("snip", {"samples_per_class": 2}),
        pytest.param("random", {}, marks=pytest.mark.slow),
    ],
)
def test_what_a_score_draws_follows_from_the_seed(score, few, quick):
    flags = {**SHORT, "levels": (0.5, 0.2), "score": score, **few}
    runs = [quick("imp", folder=str(seed), mask_seed=seed, **flags) for seed in (1, 1, 2)]
    assert runs[0].ticket.masks == runs[1].ticket.masks != runs[2].ticket.masks
    assert runs[0].ticket.masks.kept == count_kept(0.2, runs[0].summary["weights"])


def test_small_weights_are_kept_of_those_that_are_there(quick):
    """What was dropped is 0, and so the smallest; it stays dropped."""
    run = quick("imp", score="small-final", **{**SHORT, "levels": (0.5, 0.2)})
    before, masks = run.load_level(1), run.ticket.masks
    assert masks.within(before.masks) and masks.kept == count_kept(0.2, masks.size)
    final = before.state_dict()
    kept = torch.cat([final[name][mask].abs() for name, mask in masks.items()])
    gone = torch.cat([final[name][before.masks[name] & ~mask].abs() for name, mask in masks.items()])
    assert kept.max() <= gone.min()
