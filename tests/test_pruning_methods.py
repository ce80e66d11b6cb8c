"""The methods that prune by a score: before training, after it, while training; and the controls of a ticket."""

from __future__ import annotations

import json

import pytest
import torch
from products import thin

import supermask
from supermask.choosing.schedules import cubic
from supermask.selection.top_k import count_kept
from ticket_search import RequestError, RunError, search, train
from ticket_search.data.sources import read_samples
from ticket_search.methods import find_method, method_names
from ticket_search.methods.gradual import Config as Gradual
from ticket_search.methods.gradual import prune_steps
from ticket_search.runs.progress import Progress
from ticket_search.training.at_init import AtInitConfig, DataConfig, score_batches

AT_INIT = [name for name in method_names() if issubclass(find_method(name).Config, AtInitConfig)]
QUICK = {"epochs": 2, "threads": 1, "progress": False, "train_size": 320}
SMALL = {**QUICK, "model_args": "width=0.2"}


def test_the_methods_at_initialization():
    assert AT_INIT == ["grasp", "magnitude-at-init", "random", "snip", "synflow"]


@pytest.mark.parametrize("name", AT_INIT)
def test_masks_are_those_of_the_score_on_the_initial_network(name, tmp_path):
    run = search(name, runs=tmp_path, density=0.2, seed=3, **SMALL)
    ticket, config = run.ticket, run.config
    draws = ticket.states["start"].drawn
    model = ticket.model("start")
    with torch.no_grad():  # the dropped weights too
        for key, parameter in model.named_parameters():
            parameter.copy_(draws[key].tensor(key))
    data = read_samples("digits", None, 0).first(QUICK["train_size"], 0)
    evidence = {"rounds": config.rounds, "example_input": torch.ones(1, 1, 8, 8)}
    if isinstance(config, DataConfig):
        batches = list(score_batches(data, config, config.samples_per_class))
        assert sum(len(y) for _, y in batches) == 10 * data.classes
        evidence["batches"] = batches
    masks = supermask.prune(model.train(), 0.2, config.score, config.allocation, seed=3, **evidence)
    assert masks == ticket.masks
    first, *rest = run.metrics
    assert (first["stage"], first["step"], first["density/total"]) == ("pruning", 0, 0.2)
    assert {row["stage"] for row in rest} == {"training"}


def test_an_empty_layer_is_said_before_training(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    with pytest.warns(UserWarning, match="keeps none of its"):
        run = search("magnitude-at-init", runs=tmp_path, density=0.0005, **QUICK)
    empty = run.summary["empty_layers"]
    assert empty
    told = run.summary["warnings"]
    assert any(name in line for name in empty for line in told)
    said.clear()
    search("random", runs=tmp_path, density=0.3, **QUICK)
    assert said == []


@pytest.mark.parametrize("shape", ["filter", "channel", "block:2x2"])
def test_shapes_other_than_single_weights(shape, tmp_path):
    run = search("magnitude-at-init", runs=tmp_path, density=0.5, granularity=shape, **QUICK)
    masks = run.ticket.masks
    first, second = masks["fc1.weight"], masks["fc2.weight"]
    if shape == "filter":
        assert masks["fc3.weight"].all(), "the outputs stay"
        units = [first.all(1), second.all(1)]
        assert [int(unit.sum()) for unit in units] == [150, 50], "the same share of each layer"
        assert all((~mask.any(1) | mask.all(1)).all() for mask in (first, second))
        assert sum(int(unit.sum()) for unit in units) == count_kept(0.5, 400)
        assert masks.uncounted == {"fc1.bias", "fc2.bias"}
        assert torch.equal(masks["fc1.bias"], units[0])
        bias = run.ticket.state_dict()["fc1.bias"]
        assert not bias[~units[0]].any()
        assert bias[units[0]].any()
    elif shape == "channel":
        assert (~second.any(0) | second.all(0)).all()
        assert masks.uncounted == set()
    else:
        blocks = first.reshape(150, 2, 32, 2).transpose(1, 2).reshape(150, 32, 4)
        assert (blocks.all(-1) | ~blocks.any(-1)).all()
    assert run.summary["weights"] == 50200
    assert run.summary["density"] == masks.density
    assert supermask.load(run.path / "ticket.safetensors").masks.uncounted == masks.uncounted


def test_two_of_four(tmp_path):
    run = search("magnitude-at-init", runs=tmp_path, density=0.5, granularity="2:4", allocation="layerwise", **QUICK)
    for mask in run.ticket.masks.values():
        assert (mask.reshape(len(mask), -1, 4).sum(-1) == 2).all()
    with pytest.raises(RequestError) as error:
        search("random", runs=tmp_path, density=0.3, granularity="2:4", allocation="global", **QUICK)
    assert error.value.problems == [
        "--granularity 2:4 keeps 0.5: give that --density",
        "--granularity 2:4 goes with --allocation layerwise",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"granularity": "filtr"}, "did you mean 'filter'"),
        ({"granularity": "block:7x7"}, "fc1.weight"),
        ({"density": 1e-6}, r"--density 1e-06 keeps none of the 50,200 units \(weight\)"),
        ({"density": 0.001, "granularity": "filter"}, r"--density 0.001 keeps none of the 400 units \(filter\)"),
        ({"density": 0.01, "floor": 0.05}, "--density 0.01: density 0.01 keeps 502 units, a floor of 0.05 needs"),
        ({"floor": 1.5}, "--floor"),
        ({"allocation": "erq"}, "--allocation"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(flags, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        search("snip", runs=tmp_path, **{"density": 0.5, **QUICK, **flags})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("synflow", {"granularity": "2:4"}, "met in one round: give --rounds 1"),
        ("gradual", {"granularity": "2:4"}, "gradual pruning goes through many"),
        ("one-shot", {"mask_seed": 3}, "--mask-seed goes with --score"),
    ],
)
def test_flags_that_could_have_no_effect_are_refused(method, flags, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        search(method, runs=tmp_path, density=0.5, **flags, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_where_paths_are_not_defined_it_is_said(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(8, 12, batch_first=True), torch.nn.Linear(12, 10)

        def forward(self, x):
            return self.head(self.lstm(x.squeeze(1))[0][:, -1])

    search("random", Recurrent, runs=tmp_path, density=0.5, **QUICK)
    assert len(said) == 1 and said[0].startswith("cut layers are not looked for") and "lstm" in said[0]


def test_a_floor_above_the_density_names_the_tensors(tmp_path):
    with pytest.raises(RequestError, match=r"floor of 0\.5 needs .*fc1\.weight"):
        search("snip", runs=tmp_path, density=0.1, floor=0.5, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_floor_leaves_no_layer_empty(tmp_path):
    run = search("magnitude-at-init", runs=tmp_path, density=0.002, floor=0.0005, **QUICK)
    assert run.ticket.masks.kept == count_kept(0.002, 50200)
    assert min(run.ticket.masks.kept_per_tensor.values()) > 0


@pytest.mark.parametrize("then", ["rewind", "lr-rewind", "fine-tune"])
def test_one_shot_starts_again_from_where_it_says(then, tmp_path):
    more = {"retrain_epochs": 1} if then == "fine-tune" else {"rewind": "4it"}
    run = search("one-shot", runs=tmp_path, density=0.3, then=then, **more, **SMALL)
    dense, pruned = run.load_level(0), run.load_level(1)
    trained = dense.state_dict("final")
    expected = supermask.prune(dense.model(), 0.3)
    assert pruned.masks == expected, "magnitudes of the trained network"
    start = pruned.state_dict("start")
    same = [torch.equal(start[n], torch.where(m, trained[n], 0.0)) for n, m in pruned.masks.items()]
    assert all(same) is (then != "rewind")
    if then == "rewind":
        fresh = dense.state_dict("start")
        assert not any(torch.equal(start[n], torch.where(m, fresh[n], 0.0)) for n, m in pruned.masks.items())
    assert run.summary["cost"]["steps"] == (10 + 5 if then == "fine-tune" else 10 + 6)
    assert [row["density"] for row in run.levels] == [1.0, pytest.approx(0.3, abs=1e-4)]


@pytest.mark.parametrize("score", thin(["l2", "snip", "taylor", "grasp", "synflow", "movement", "random"], 3))
def test_one_shot_takes_any_score(score, tmp_path):
    run = search("one-shot", runs=tmp_path, density=0.3, score=score, **{**SMALL, "epochs": 1})
    assert run.ticket.masks.kept == count_kept(0.3, run.summary["weights"])
    same = run.ticket.masks == supermask.prune(run.load_level(0).model(), 0.3)
    assert same is (score == "l2"), "of single weights the order of the magnitude"


@pytest.mark.slow
def test_one_shot_by_the_scale_of_batch_norms(tmp_path):
    flags = {"score": "bn-scale", "granularity": "filter", "batch_size": 400, **QUICK, "epochs": 1, "train_size": None}
    run = search("one-shot", "resnet20", runs=tmp_path, density=0.5, exclude=("head",), **flags)
    masks = run.ticket.masks
    norms = [name for name in masks.uncounted if "norm" in name and name.endswith("weight")]
    assert norms
    dense = run.load_level(0).model()
    for name in ("stages.0.0.norm1.weight", "stages.2.1.norm1.weight"):
        kept, scale = masks[name], dense.get_parameter(name).abs()
        assert int(kept.sum()) == len(kept) // 2
        assert scale[kept].min() >= scale[~kept].max()
    with pytest.raises(RunError, match=r"no batch norm stands behind fc1\.weight"):
        search("one-shot", runs=tmp_path, density=0.5, **flags)


def test_one_shot_without_retraining_keeps_the_trained_weights(tmp_path):
    flags = {"then": "fine-tune", "retrain_epochs": 0, "density": 0.2, "schedule": "cosine", **QUICK}
    run = search("one-shot", runs=tmp_path, **flags)
    dense, pruned = run.load_level(0), run.ticket
    assert pruned.masks == supermask.prune(dense.model("final"), 0.2)
    for name, tensor in dense.state_dict("final").items():
        assert torch.equal(pruned.state_dict("final")[name], tensor * pruned.masks.get(name, torch.ones(())))
    assert run.summary["cost"]["steps"] == 10, "those of the dense training"


def test_one_shot_flags_that_do_not_go_together():
    for flags, message in [
        (
            {"then": "fine-tune", "retrain_epochs": 0, "retrain_lr": 0.1},
            "--retrain-lr goes with --retrain-epochs above",
        ),
        ({"then": "fine-tune", "rewind": "10it"}, "--rewind goes with"),
        ({"retrain_lr": 0.1}, "--retrain-lr goes with --then fine-tune"),
        ({"samples_per_class": 5}, "--samples-per-class goes with --score"),
        ({"rewind": "12ep"}, "--rewind 12ep"),
    ]:
        with pytest.raises(RequestError, match=message):
            search("one-shot", progress=False, **flags)


def test_gradual_density_falls_by_the_cubic_law_and_never_rises(tmp_path):
    flags = {"prune_from": "5it", "prune_until": "35it", "prune_every": "6it", **QUICK, "train_size": None}
    run = search("gradual", runs=tmp_path, density=0.1, **flags)
    rows = [row for row in run.metrics if "density/total" in row and row["stage"] == "pruning"]
    assert [row["step"] for row in rows] == [11, 17, 23, 29, 35]
    for row in rows:
        goal = cubic((row["step"] - 5) / 30, 0.1)
        assert row["density/total"] == count_kept(goal, 50200) / 50200
    assert run.ticket.masks.kept == count_kept(0.1, 50200)
    assert run.summary["cost"]["steps"] == 42
    assert run.summary["min_validation_loss"]["step"] >= 35, "an earlier network kept more weights"


def test_gradual_steps():
    def steps(**flags):
        return prune_steps(Gradual(epochs=10, **flags), 20)

    assert steps() == (0, [*range(5, 105, 5)])
    assert steps(prune_from="1ep", prune_until="2ep", prune_every="8it") == (20, [28, 36, 40])
    for flags in ({"prune_from": "100it"}, {"prune_until": "10ep"}, {"prune_until": "0"}):
        with pytest.raises(RequestError, match="expected it to end after that"):
            steps(**flags)


@pytest.fixture(scope="module")
def ticket(tmp_path_factory):
    return search("imp", runs=tmp_path_factory.mktemp("found"), density=0.2, fraction=0.6, **{**SMALL, "epochs": 1})


def test_controls_differ_from_the_ticket_in_one_thing(ticket, tmp_path):
    own = ticket.ticket
    start = own.state_dict("start")
    full = {name: draw.tensor(name) for name, draw in own.states["start"].drawn.items()}
    runs = {
        control: train(ticket.path, runs=tmp_path, control=control, seed=5, threads=1, progress=False)
        for control in ("shuffle", "reinit", "random")
    }
    for control, run in runs.items():
        masks, began = run.ticket.masks, run.ticket.state_dict("start")
        assert run.path.name.startswith(f"train-{control}-")
        assert masks.kept == own.masks.kept
        assert run.ticket.meta["config"]["found_by"] == "imp"
        for name, mask in masks.items():
            if control == "reinit":
                assert torch.equal(mask, own.masks[name])
                assert not torch.equal(began[name], start[name])
            else:
                assert torch.equal(began[name], torch.where(mask, full[name], 0.0))
                assert not torch.equal(mask, own.masks[name])
        layers = masks.kept_per_tensor
        if control == "shuffle":
            assert layers == own.masks.kept_per_tensor
        if control == "random":
            assert max(abs(masks.densities[n] - masks.density) for n in masks) < 0.001
        final = run.ticket.state_dict()
        assert all(not final[name][~mask].any() for name, mask in masks.items())


def test_controls_that_cannot_be(ticket, tmp_path):
    with pytest.raises(RequestError, match="seed 0 draws the ticket's own weights"):
        train(ticket.path, runs=tmp_path, control="reinit", progress=False)
    with pytest.raises(RequestError, match="expected --state start"):
        train(ticket.path, runs=tmp_path, control="shuffle", state="final", progress=False)
    rewound = search("imp", runs=tmp_path, density=0.5, fraction=0.5, rewind="3it", **{**QUICK, "epochs": 1})
    with pytest.raises(RequestError, match=r"fc1\.weight"):
        train(rewound.path, runs=tmp_path, control="shuffle", progress=False)
    with pytest.raises(RequestError, match="--mask-seed goes with --control"):
        train(ticket.path, runs=tmp_path, mask_seed=3, progress=False)
    with pytest.raises(RequestError, match="control"):
        train(ticket.path, runs=tmp_path, control="shufle", progress=False)
    json.dumps(ticket.summary)
