"""The rules of learned masks over random weights, each beside its formula written out slowly."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import supermask
from supermask.live import program_of
from supermask.selection.top_k import count_kept
from ticket_search import RequestError
from ticket_search import search as search_anywhere
from ticket_search.methods import find_method


@pytest.fixture
def search(tmp_path):
    """A search of a few steps of a small network."""
    return partial(search_anywhere, runs=tmp_path, progress=False, threads=1, epochs=2, model_args="width=0.1")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))


def effective_of(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What the layers read in a pass in training mode, their gradients kept."""
    program, seen = program_of(model), []
    end = program.end

    def look() -> None:
        for (module, attribute), *_ in program.owners.values():
            seen.append(module._parameters[attribute])
            seen[-1].retain_grad()
        end()

    program.end = look
    try:
        model(x).square().sum().backward()
    finally:
        program.end = end
    return seen


def keep(keys: np.ndarray, count: int) -> np.ndarray:
    """A mask of the largest keys, by a sort."""
    mask = np.zeros(keys.size, dtype=bool)
    mask[np.argsort(-keys.ravel(), kind="stable")[:count]] = True
    return mask.reshape(keys.shape)


# --- IteRand


def test_iterand_ranks_raw_scores_and_its_gradient_has_no_sign():
    model, x = net(), torch.randn(4, 7)
    supermask.learn(model, 0.3, program="iterand", seed=1)
    made = effective_of(model, x)
    for (name, learned), weight in zip(supermask.learned_of(model).items(), made, strict=True):
        scores, frozen = learned["scores"].detach().numpy(), model.get_parameter(name).detach().numpy()
        mask = keep(scores, count_kept(0.3, scores.size))
        assert not np.array_equal(mask, keep(np.abs(scores), mask.sum())), "by absolute value others would be kept"
        assert np.array_equal(weight.detach().numpy(), frozen * mask)
        assert np.array_equal(learned["scores"].grad.numpy(), weight.grad.numpy() * frozen)
        bound = math.sqrt(6 / scores.shape[1])
        assert 0.7 * bound < np.abs(scores).max() < bound


def test_a_negative_score_is_kept_only_where_too_few_are_larger():
    model = net()
    supermask.learn(model, 0.3, program="iterand")
    (scores, *_) = (learned["scores"] for learned in supermask.learned_of(model).values())
    with torch.no_grad():
        scores.fill_(-3.0)
        scores.view(-1)[:20] = torch.arange(20) / 100.0 - 0.05
    mask = supermask.masks_of(model)["0.weight"].view(-1)
    assert mask.nonzero().view(-1).tolist() == list(range(20 - count_kept(0.3, 35), 20))


@pytest.mark.parametrize("init", ["signed-constant", "kaiming-normal"])
def test_dropped_weights_are_drawn_anew_by_the_law_of_the_init(init):
    model = nn.Sequential(nn.Linear(200, 300))
    supermask.learn(model, 0.5, program="iterand", weights=init, seed=3)
    before, mask = model[0].weight.detach().clone(), supermask.masks_of(model)["0.weight"]
    supermask.redraw(model, 0.25, seed=5)
    after = model[0].weight.detach()
    assert torch.equal(after[mask], before[mask]), "what is kept stays"
    changed = (after != before)[~mask].float().mean()
    # Of constants only the sign can change, and half of the signs are drawn as they were.
    assert changed == pytest.approx(0.25 if init == "kaiming-normal" else 0.125, abs=0.01)
    fresh = after[(after != before)]
    assert fresh.mean() == pytest.approx(0, abs=0.01)
    assert fresh.std() == pytest.approx((2 / 200) ** 0.5 * 2**0.5, rel=0.05), "scaled by the density, as at first"
    if init == "signed-constant":
        assert torch.equal(after.abs(), before.abs())
    supermask.check(model)
    again = copy.deepcopy(model)
    supermask.redraw(again, 0.25, seed=5)
    assert torch.equal(again[0].weight, after), "the same seed draws the same"
    supermask.redraw(again, 0.25, seed=6)
    assert not torch.equal(again[0].weight, after)
    supermask.redraw(model, 0, seed=7)
    assert torch.equal(model[0].weight, after)


@pytest.mark.parametrize("learned_as", ["drawn", "redrawn"])
def test_a_weight_that_something_else_changes_is_found_before_it_is_redrawn(learned_as):
    """One bit of one weight, kept or dropped, past autograd's notice: a redraw must not take it as its own."""
    for change in (lambda w: w.data.view(torch.int32).view(-1)[5].bitwise_xor_(1), lambda w: w.data[0, 0].neg_()):
        model = net()
        supermask.learn(model, 0.5, program="iterand", weights="kaiming-normal")
        if learned_as == "redrawn":
            supermask.redraw(model, 0.5, seed=1)
        program = program_of(model)
        assert program.fingerprint == supermask.fingerprint(program.weights())
        change(model[2].weight)
        for ask in (lambda m: supermask.redraw(m, 0.5, seed=2), supermask.check):
            with pytest.raises(ValueError, match="frozen weights have changed"):
                ask(model)
        change(model[2].weight)
        supermask.redraw(copy.deepcopy(model), 0.5, seed=2)
        supermask.check(model)


def test_zeros_are_frozen_with_their_sign():
    model = net()
    supermask.learn(model, 0.5, program="iterand")
    supermask.replace_weights(model, {"0.weight": torch.zeros_like(model[0].weight)})
    supermask.check(model)
    model[0].weight.data[0, 0] = -0.0
    with pytest.raises(ValueError, match="frozen weights have changed"):
        supermask.check(model)


def test_what_cannot_be_drawn_anew():
    model = net()
    with pytest.raises(ValueError, match="carries no learned masks"):
        supermask.redraw(model, 0.1, seed=0)
    supermask.learn(model, 0.5, weights="keep", program="iterand")
    with pytest.raises(ValueError, match=r"0\.weight, 2\.weight would be drawn anew is not known"):
        supermask.redraw(model, 0.1, seed=0)
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        supermask.redraw(model, 1.5, seed=0)


def test_iterand_redraws_as_often_as_in_the_paper_and_never_with_a_share_of_0(search, monkeypatch):
    calls, redraw = [], supermask.redraw
    monkeypatch.setattr(supermask, "redraw", lambda model, *given: (calls.append(given), redraw(model, *given)))
    run = search("iterand", redraw_every="7it")
    total = run.summary["cost"]["steps"]
    assert len(calls) == total // 7
    assert len({seed for _, seed in calls}) == len(calls), "another seed every time"
    assert run.summary["redrawn"] == {"every": 7, "share": 0.1}
    every = find_method("iterand").plan.__globals__["steps_between"]
    config = find_method("iterand").Config
    assert every(config(epochs=100), 390) == 300, "the paper's"
    assert every(config(epochs=1), 11) == 1
    calls.clear()
    still = search("iterand", redraw_share=0)
    assert calls == []
    assert not len(still.ticket.states["final"].signs)
    busy = search("iterand", redraw_share=1, redraw_every="2it", lr=1.0)
    assert len(busy.ticket.states["final"].signs), "only the signs are stored of constants drawn anew"
    assert not len(busy.ticket.states["final"].stored)
    with pytest.raises(RequestError, match="--init keep: weights that come with the model have no law"):
        search("iterand", init="keep")
    with pytest.raises(RequestError, match="expected at most the 20 steps"):
        search("iterand", redraw_every="1000it")


# --- biprop


@pytest.mark.parametrize("allocation", ["layerwise", "global"])
@pytest.mark.parametrize("density", [0.3, 0.29, 0.5, 0.1])
def test_biprop_by_hand(allocation, density):
    model, x = net(), torch.randn(4, 7)
    supermask.learn(model, density, program="biprop", weights="kaiming-normal", allocation=allocation, seed=2)
    made = effective_of(model, x)
    learned = supermask.learned_of(model)
    scores = {name: tensors["scores"].detach().numpy() for name, tensors in learned.items()}
    joint = np.concatenate([np.abs(part).ravel() for part in scores.values()])
    everything = keep(joint, count_kept(density, joint.size))
    start = 0
    for (name, tensors), weight in zip(learned.items(), made, strict=True):
        s, w = scores[name], model.get_parameter(name).detach().numpy()
        mask = keep(np.abs(s), count_kept(density, s.size))
        divisor = max(1, int(density * s.size))
        if allocation == "global":
            mask = everything[start : start + s.size].reshape(s.shape)
            divisor = mask.sum()
        start += s.size
        gain = np.abs(w[mask]).sum() / divisor
        np.testing.assert_allclose(weight.detach().numpy(), np.sign(w) * mask * gain, rtol=1e-6)
        # The gain is not in the gradient.
        np.testing.assert_allclose(tensors["scores"].grad.numpy(), weight.grad.numpy() * w * np.sign(s), rtol=1e-6)
    sizes = [part.size for part in scores.values()]
    if density == 0.3:
        assert [int(density * n) for n in sizes] != [count_kept(density, n) for n in sizes], "no whole numbers here"


def test_a_ticket_of_signs_stores_none_of_constants(search):
    run = search("biprop", init="signed-constant", density=0.3)
    final = run.ticket.states["final"]
    values = [tensor[run.ticket.masks[name]].abs() for name, tensor in final_weights(run).items()]
    assert all(bool((part == part[0]).all()) for part in values), "one size for each layer"
    assert len(final.gains), "the size of most is a product with the constant in float32: nothing else is stored"
    assert {*final.gains} & {*final.stored} == set()
    drawn = search("biprop", density=0.3)
    assert set(drawn.ticket.states["final"].stored) == set(run.ticket.masks)


def final_weights(run) -> dict[str, torch.Tensor]:
    state = run.ticket.state_dict("final")
    return {name: state[name] for name in run.ticket.masks}


# --- Bernoulli


def test_bernoulli_by_hand_where_logits_are_not_0():
    """The rescaling and its gradient, in float64, beside a sum that is written out entry by entry."""
    model, x = net().double(), torch.randn(4, 7, dtype=torch.float64)
    supermask.learn(model, program="bernoulli", weights="xavier-normal", seed=4)
    program = program_of(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in program.layers:
            layer["logits"].copy_(torch.randn(layer.shape, generator=generator, dtype=torch.float64) * 2)
    masks = [layer.uniform().numpy() < layer["logits"].detach().sigmoid().numpy() for layer in program.layers]
    made = effective_of(model, x)
    for layer, mask, weight in zip(program.layers, masks, made, strict=True):
        w, upstream = layer.weight.detach().numpy(), weight.grad.numpy()
        ones = mask.sum()
        assert 0 < ones < mask.size
        np.testing.assert_allclose(weight.detach().numpy(), w * mask * mask.size / ones, rtol=1e-12)
        p = 1 / (1 + np.exp(-layer["logits"].detach().numpy()))
        expected = np.empty_like(w)
        for i in np.ndindex(*w.shape):
            # d/d mask_i of sum_j upstream_j w_j mask_j size / sum_k mask_k, then d mask_i / d logit_i = p (1 - p).
            own = upstream[i] * w[i] * mask.size / ones
            others = sum(upstream[j] * w[j] * mask[j] for j in np.ndindex(*w.shape)) * mask.size / ones**2
            expected[i] = (own - others) * p[i] * (1 - p[i])
        np.testing.assert_allclose(layer["logits"].grad.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_a_layer_that_draws_nothing_is_no_nan_and_is_refused():
    model = net()
    supermask.learn(model, program="bernoulli")
    with torch.no_grad():
        supermask.learned_of(model)["0.weight"]["logits"].fill_(-60)
    model(torch.randn(4, 7)).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    with pytest.raises(ValueError, match="0.weight keeps 0 of 35 weights"):
        supermask.check(model)


def test_bernoulli_draws_with_its_probability_and_can_be_thresholded():
    model = nn.Sequential(nn.Linear(300, 400))
    supermask.learn(model, program="bernoulli", seed=2)
    logits = supermask.learned_of(model)["0.weight"]["logits"]
    with torch.no_grad():
        logits.fill_(-1.0)
        logits[:200] = 1.0
    drawn = [supermask.masks_of(model)["0.weight"]]
    for _ in range(2):
        model(torch.zeros(1, 300))
        drawn.append(supermask.masks_of(model)["0.weight"])
    for mask in drawn:
        assert mask[:200].float().mean() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.01)
        assert mask[200:].float().mean() == pytest.approx(torch.tensor(-1.0).sigmoid().item(), abs=0.01)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    program_of(model).rule.thresholded = True
    assert torch.equal(supermask.masks_of(model)["0.weight"], logits > 0)


def test_the_density_is_as_it_comes_or_steered_and_else_that_is_said(search, capsys):
    search = partial(search, model_args=())  # of a few weights the density is a number of its own at every draw
    free = search("bernoulli", steer=0)
    assert free.summary["density"] == pytest.approx(0.5, abs=0.02), "every logit starts at 0"
    far = search("bernoulli", density=0.2, epochs=1, steer=1e-6, progress=True)
    assert "more than 2 % away from the 0.2 asked: raise --steer" in " ".join(capsys.readouterr().err.split())
    near = search("bernoulli", density=0.3, epochs=20, progress=True)
    assert near.summary["density"] == pytest.approx(0.3, rel=0.02)
    assert "away from" not in capsys.readouterr().err
    assert far.summary["density"] > 0.4
    samples = near.summary["samples"]
    assert samples["number"] == 10
    assert samples["density_mean"] == pytest.approx(0.3, rel=0.02)
    assert 0 < samples["density_std"] < 0.005
    assert abs(samples["test_metric_mean"] - near.summary["test_metric"]) < 6 * samples["test_metric_std"] + 1
    assert 0 < near.summary["above_half"]["density"] < 1
    with pytest.raises(RequestError, match="--density goes with --steer above 0"):
        search("bernoulli", density=0.3, steer=0)


# --- edge-popup whose density falls


@pytest.mark.parametrize("allocation", ["layerwise", "global"])
@pytest.mark.parametrize("fall", ["cubic", "linear"])
def test_the_density_of_each_step_falls_to_the_one_asked(search, monkeypatch, fall, allocation):
    kept, optimizers = [], []
    handle = register_optimizer_step_post_hook(lambda *_: optimizers.append(1))
    change = supermask.change_density

    def watch(model, density):
        change(model, density)
        kept.append((density, supermask.masks_of(model)))

    monkeypatch.setattr(supermask, "change_density", watch)
    run = search("edge-popup", fall=fall, density=0.1, fall_until="13it", fall_from=0.9, allocation=allocation)
    handle.remove()
    assert len(kept) == 14 < len(optimizers)
    for step, (density, masks) in enumerate(kept):
        left = 1 - step / 13
        expected = 0.1 + 0.8 * (left**3 if fall == "cubic" else left)
        assert density == pytest.approx(expected, abs=1e-12)
        if allocation == "layerwise":
            assert masks.kept_per_tensor == {n: count_kept(density, m.numel()) for n, m in masks.items()}
        assert abs(masks.kept - density * masks.size) <= (1 if allocation == "global" else len(masks))
    assert kept[-1][0] == 0.1
    assert all(a > b for (a, _), (b, _) in itertools.pairwise(kept))
    assert run.ticket.masks.kept == count_kept(0.1, run.ticket.masks.size)
    for chosen in ("min_validation_loss", "best_validation"):
        assert run.summary[chosen]["step"] > 13, "only networks of the density asked are compared"
    assert run.ticket.meta["config"]["fall"] == fall


def test_a_fall_is_stopped_and_resumed_in_the_middle(tmp_path):
    from method_tests import Searches, stopped_and_resumed_is_never_stopped

    stopped_and_resumed_is_never_stopped("edge-popup", Searches(tmp_path, fall="cubic", density=0.2, fall_until="17it"))


def test_what_does_not_fall_records_nothing_of_it(search):
    plain = search("edge-popup")
    assert not [name for name in plain.ticket.meta["config"] if name.startswith("fall")]
    refused = {
        "--fall-from goes with --fall cubic or linear": {"fall_from": 0.9},
        "--fall cubic: --granularity 2:4 has one density": {"fall": "cubic", "granularity": "2:4"},
        "leave out --compile": {"fall": "cubic", "compile": True},
        "--fall-from 0.4: expected at least the --density of 0.5": {"fall": "linear", "fall_from": 0.4},
        "--fall-until 9ep: expected a step before the training's": {"fall": "linear", "fall_until": "9ep"},
    }
    for words, flags in refused.items():
        with pytest.raises(RequestError) as told:
            search("edge-popup", **flags)
        assert words in str(told.value)


def test_a_density_that_cannot_change():
    model = net()
    with pytest.raises(ValueError, match="carries no masks"):
        supermask.change_density(model, 0.5)
    supermask.learn(model, program="bernoulli")
    with pytest.raises(ValueError, match="no density that could change"):
        supermask.change_density(model, 0.5)
    model = net()
    supermask.learn(model, 0.5)
    for density, words in ((0.01, r"none of the weights of 0.weight \(35\), 2.weight"), (1.5, r"\(0, 1\]")):
        with pytest.raises(ValueError, match=words):
            supermask.change_density(model, density)
    supermask.check(model)
    supermask.change_density(model, 0.2)
    supermask.check(model)
    assert supermask.masks_of(model).kept == 7 + 3


# --- Gem-Miner


def test_flags_are_for_good_and_the_unflagged_return():
    model, x = net(), torch.randn(4, 7)
    supermask.learn(model, program="gem-miner", scaled=False, seed=6)
    layers = program_of(model).layers
    p = [layer["p"].detach().clone() for layer in layers]
    supermask.live.gem_miner.flag_lowest(layers, 20)
    everything = torch.cat([part.view(-1) for part in p])
    cut = everything.sort().values[20]
    for layer, part in zip(layers, p, strict=True):
        assert torch.equal(layer["alive"], part >= cut)
    made = effective_of(model, x)
    for layer, part, weight in zip(layers, p, made, strict=True):
        kept = (part > 0.5) & layer["alive"]
        assert torch.equal(weight.detach(), layer.weight * kept)
        expected = weight.grad * layer.weight.detach() * layer["alive"]
        assert torch.equal(layer["p"].grad, expected), "0 under a flag, straight through elsewhere"
        assert bool((layer["p"].grad[layer["alive"] & ~kept] != 0).any()), "what is rounded down still learns"
    with torch.no_grad():
        for layer in layers:
            layer["p"].fill_(2.0)
    assert supermask.masks_of(model).kept == 30, "a flagged weight stays away whatever its p"
    assert all(bool((layer["p"] == 1).all()) for layer in layers), "clamped before it is read"
    supermask.live.gem_miner.flag_lowest(layers, 10)
    assert supermask.masks_of(model).kept == 20, "exactly so many, of equal ones too"
    with torch.no_grad():
        for layer in layers:
            layer["p"].zero_()
    assert supermask.masks_of(model).kept == 0
    supermask.live.gem_miner.return_unflagged(layers)
    assert supermask.masks_of(model).kept == 20
    assert supermask.live.gem_miner.unflagged_density(layers) == 20 / 50
    with pytest.raises(ValueError, match="expected to flag off 0 to 20 weights, as many as are left, got 21"):
        supermask.live.gem_miner.flag_lowest(layers, 21)


def test_half_is_rounded_down():
    model = net()
    supermask.learn(model, program="gem-miner")
    with torch.no_grad():
        for layer in program_of(model).layers:
            layer["p"].fill_(0.5)
    assert supermask.masks_of(model).kept == 0


def test_both_densities_are_reported_and_returning_meets_the_one_asked(search, monkeypatch):
    flagged, flag_lowest = [], supermask.live.gem_miner.flag_lowest
    monkeypatch.setattr(
        supermask.live.gem_miner, "flag_lowest", lambda layers, n: (flagged.append(n), flag_lowest(layers, n))
    )
    run = search("gem-miner", density=0.7, epochs=7, flag_every=2)
    size = run.summary["weights"]
    left = size
    for count in flagged:
        assert count == math.ceil((1 - 0.7 ** (1 / 3)) * left)
        left -= count
    assert len(flagged) == 3, "after epochs 2, 4 and 6 of 7"
    assert run.summary["unflagged_density"] == left / size == pytest.approx(0.7, abs=3 / size + 1e-12)
    assert run.summary["density"] < run.summary["unflagged_density"]
    assert run.summary["flagged_every"] == 2
    assert run.summary["min_validation_loss"]["step"] > 60 - 1
    whole = search("gem-miner", density=0.7, epochs=7, flag_every=2, return_unflagged=True)
    assert whole.summary["kept"] == left
    assert whole.summary["best_validation"]["step"] == whole.summary["cost"]["steps"]
    assert whole.summary["best_validation"]["test_metric"] == whole.summary["test_metric"]
    with pytest.raises(RequestError, match="--epochs 1: no epoch is left to flag weights off in"):
        search("gem-miner", density=0.2, epochs=1)


def test_the_penalty_goes_by_density_and_is_the_sum_of_squares():
    config = find_method("gem-miner").Config
    for density, expected in ((0.0059, 1e-4), (0.0144, 1e-4), (0.0372, 3e-5), (0.5, 1e-8), (0.9, 1e-8)):
        assert config(density=density).strength == pytest.approx(expected)
    assert 1e-8 < config(density=0.1).strength < 3e-5
    assert config(density=0.1, penalty=0.0).strength == 0
    assert [config(epochs=epochs).every for epochs in (2, 30, 150)] == [1, 1, 5]
    model = net()
    supermask.learn(model, program="gem-miner")
    layers = program_of(model).layers
    hook = find_method("gem-miner").search.__globals__["Flags"](layers, config(penalty=0.25), 10)
    by_hand = sum(float(value) ** 2 for layer in layers for value in layer["p"].detach().view(-1))
    assert hook.extra_loss().item() == pytest.approx(0.25 * by_hand)


# --- signed


@pytest.mark.parametrize("asked", [{"program": "signed", "density": 0.3}, {"threshold": 0.4}])
def test_signed_by_hand_and_no_score_is_without_a_gradient(asked):
    model, x = net(), torch.randn(4, 7)
    threshold = asked.pop("threshold", None)
    if threshold is not None:
        asked = {"program": supermask.live.Signed(threshold, gain=1.5)}
    supermask.learn(model, **asked, scaled=False, seed=3)
    made = effective_of(model, x)
    for layer, weight in zip(program_of(model).layers, made, strict=True):
        m, w = layer["scores"].detach().numpy(), layer.weight.detach().numpy() * (1.5 if threshold else 1.0)
        tau = threshold if threshold else np.sort(np.abs(m).ravel())[::-1][count_kept(0.3, m.size)]
        expected = np.array([[0 if abs(v) <= tau else math.copysign(1, v) for v in row] for row in m])
        assert {-1, 0, 1} == set(expected.ravel())
        np.testing.assert_allclose(weight.detach().numpy(), w * expected, rtol=1e-6)
        np.testing.assert_allclose(layer["scores"].grad.numpy(), weight.grad.numpy() * w, rtol=1e-6)
        there = weight.grad.numpy() != 0
        assert np.array_equal(layer["scores"].grad.numpy() != 0, there), "below the threshold too"
        assert (there & (expected == 0)).any()
        bound = math.sqrt(6 / sum(m.shape))
        assert 0.7 * bound < np.abs(m).max() < bound


def test_signed_meets_a_density_or_a_threshold_gives_one(search):
    run = search("signed", density=0.3)
    assert run.ticket.masks.kept_per_tensor == {n: count_kept(0.3, m.numel()) for n, m in run.ticket.masks.items()}
    final = run.ticket.states["final"]
    assert set(final.signs) == set(run.ticket.masks), "flips are stored, a bit each"
    assert set(final.gains) | set(final.stored) == set(run.ticket.masks)
    free = search("signed", threshold=0.02)
    assert 0.3 < free.summary["density"] < 1
    groups = search("signed", granularity="2:4", exclude="fc2,fc3")
    assert groups.ticket.density == 0.5
    refused = {
        "--granularity goes with a searched threshold": {"granularity": "2:4"},
        "--density goes with a searched threshold": {"density": 0.3},
        "--allocation goes with": {"allocation": "global"},
    }
    for words, flags in refused.items():
        with pytest.raises(RequestError) as told:
            search("signed", threshold=0.1, **flags)
        assert words in str(told.value)
    with pytest.raises(ValueError, match="expected a threshold of at least 0"):
        supermask.live.Signed(-1.0)
