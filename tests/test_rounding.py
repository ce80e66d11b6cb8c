"""Scores in bf16: what is rounded at random is right on average, and nothing is lost but precision."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from rules import RULES, learn
from test_tensorboard import stopping_at
from torch import nn

import supermask
from supermask.live import EdgePopup, IteRand
from supermask.live.noise import make_key
from supermask.live.rounding import RoundedOptimizer, round_at_random
from supermask.selection import gpu
from supermask.selection.tracking import Chooser
from ticket_search import Interrupted, RequestError, search

STEP = torch.zeros((), dtype=torch.int64)
METHODS = ["edge-popup", "biprop", "iterand", "signed", "supsup"]


def neighbours(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two bf16 numbers beside each number, by NumPy: the one toward 0, and the next one away from it."""
    bits = values.numpy().view(np.uint32)
    toward = (bits & 0xFFFF0000).view(np.float32)
    away = ((bits & 0xFFFF0000) + np.where(bits & 0xFFFF, 0x10000, 0).astype(np.uint32)).view(np.float32)
    return torch.from_numpy(toward.copy()), torch.from_numpy(away.copy())


def test_the_mean_of_what_is_rounded_is_the_number_itself():
    values = torch.randn(300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 300)
    seeds = 4000
    total = torch.zeros(300, dtype=torch.float64)
    toward, away = neighbours(values)
    for seed in range(seeds):
        rounded = round_at_random(values, make_key(seed, "x"), STEP, 0).float()
        assert ((rounded == toward) | (rounded == away)).all()
        total += rounded.double()
    gap = (away - toward).double().abs()
    share = (values - toward).double().abs() / gap
    deviation = gap * (share * (1 - share) / seeds).sqrt()
    found = (total / seeds - values.double()).abs() / deviation
    assert found.max() < 4.5, "standard errors; of 300 numbers the largest is 3 on average"
    nearest = (values.bfloat16().double() - values.double()).abs() / deviation
    assert nearest.median() > 20, "the nearest number is another mean"


def test_what_is_no_number_or_needs_no_rounding_stays_as_it_is():
    # The bits of a GPU's NaN are all ones: what is added to them must not make a number of it.
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    odd = torch.cat([torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1.0, -2.5, torch.nan]), nan, -nan])
    for seed in range(50):
        rounded = round_at_random(odd, make_key(seed, "x"), STEP, 0)
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(rounded[:6].float(), odd[:6])
        assert torch.equal(rounded[:6].signbit(), odd[:6].signbit())
        assert rounded[6:].isnan().all()


def test_the_same_key_step_and_stream_round_alike_in_every_memory_layout():
    values = torch.randn(4, 6, 5, 5)
    key = make_key(3, "x")
    rounded = round_at_random(values, key, STEP, 0)
    laid_out = round_at_random(values.to(memory_format=torch.channels_last), key, STEP, 0)
    assert torch.equal(rounded, laid_out)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    for other in ((make_key(4, "x"), STEP, 0), (key, STEP + 1, 0), (key, STEP, 1)):
        assert not torch.equal(rounded, round_at_random(values, *other))


KINDS = {
    "sgd": {"kind": "sgd"},
    "momentum": {"kind": "sgd", "momentum": 0.9},
    "nesterov": {"kind": "sgd", "momentum": 0.9, "nesterov": True},
    "adam": {"kind": "adam"},
    "adamw": {"kind": "adamw"},
}
OF_PYTORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def make_pytorch(parameters, kind, **flags):
    return OF_PYTORCH[kind](parameters, **flags)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_parameters_are_trained_as_by_pytorch(kind):
    stream = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(50, generator=stream), torch.randn(9, 50, generator=stream)
    ends = []
    for make in (make_pytorch, RoundedOptimizer):
        parameter = nn.Parameter(start.clone())
        optimizer = make([parameter], lr=0.01, weight_decay=0.1, **KINDS[kind])
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        ends.append(parameter.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_too_small_for_bf16_are_made_on_average(kind):
    """Each one a hundredth of the distance to the next bf16 number: rounded to the nearest, nothing would move."""
    count, steps, rate = 4000, 100, 1e-4
    gradient = torch.full((count,), 0.5)
    exact = nn.Parameter(torch.ones(count))
    rounded = nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    lost = nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    made = [make([p], lr=rate, weight_decay=0.0, **KINDS[kind]) for make, p in
            ((make_pytorch, exact), (RoundedOptimizer, rounded), (make_pytorch, lost))]  # fmt: skip
    for _ in range(steps):
        for parameter in (exact, rounded, lost):
            parameter.grad = gradient.to(parameter.dtype)
        for optimizer in made:
            optimizer.step()
    moved, expected = 1 - rounded.detach().float().mean(), 1 - exact.detach().mean()
    # Each number is one of two that lie 2^-8 apart below 1; the moments' own rounding adds less.
    deviation = 2**-8 * 0.5 / count**0.5
    assert abs(moved - expected) < 5 * deviation + 0.004 * expected
    assert expected > 20 * deviation
    assert kind != "sgd" or torch.equal(lost, torch.ones_like(lost)), "PyTorch's own optimizer moves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_goes_on_gives_the_same_bytes(kind):
    stream = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(40, 30, generator=stream), torch.randn(6, 40, 30, generator=stream)

    def train(parameters, optimizer, some):
        for gradient in some:
            for parameter in parameters:
                parameter.grad = gradient.to(parameter.dtype)
            optimizer.step()

    def begin(values):
        parameters = [nn.Parameter(value.clone()) for value in values]
        return parameters, RoundedOptimizer(parameters, lr=0.01, seed=7, **KINDS[kind])

    whole, optimizer = begin([start.bfloat16(), start])
    train(whole, optimizer, gradients)
    first, optimizer = begin([start.bfloat16(), start])
    train(first, optimizer, gradients[:3])
    again, other = begin([parameter.detach() for parameter in first])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(again, other, gradients[3:])
    assert all(torch.equal(*pair) for pair in zip(whole, again, strict=True))
    assert {m.dtype for name, m in other.state[again[0]].items() if name != "step"} <= {torch.bfloat16}
    assert {m.dtype for name, m in other.state[again[1]].items() if name != "step"} <= {torch.float32}


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected kind sgd, adam or adamw, got 'lion'"):
        RoundedOptimizer([nn.Parameter(torch.ones(1))], "lion", lr=0.1)


def ranked(scores: list[torch.Tensor], counts: list[int] | int) -> list[torch.Tensor]:
    """The largest |s| in fp64, of equal ones the first, by a stable sort of all of them."""
    joint = isinstance(counts, int)
    groups = [scores] if joint else [[score] for score in scores]
    masks = []
    for group, k in zip(groups, [counts] if joint else counts, strict=True):
        keys = torch.cat([score.double().abs().reshape(-1) for score in group])
        order = keys.sort(descending=True, stable=True).indices
        mask = torch.zeros(keys.numel(), dtype=torch.bool)
        mask[order[:k]] = True
        masks += [part.view(s.shape) for part, s in zip(mask.split([s.numel() for s in group]), group, strict=True)]
    return masks


@pytest.mark.parametrize("ways", ["tracked", "tables", "compiled"])
@pytest.mark.parametrize("joint", [False, True])
def test_bf16_scores_are_ranked_exactly_where_many_are_equal(ways, joint):
    """A layer of 100,000 scores has some hundred different magnitudes in bf16: most are equal to many others."""
    stream = torch.Generator().manual_seed(0)
    scores = [(torch.rand(size, generator=stream) * 2 - 1).bfloat16() for size in ((250, 400), (30, 20), (5000,))]
    assert scores[0].abs().unique().numel() < 3000
    counts = sum(s.numel() for s in scores) // 2 if joint else [s.numel() // 2 for s in scores]
    chooser = Chooser(counts)
    for step in range(4):
        expected = ranked(scores, counts)
        lowest = min(s.abs()[m].min() for s, m in zip(scores, expected, strict=True))
        assert any(((s.abs() == lowest) & ~m).any() for s, m in zip(scores, expected, strict=True)), "ties are divided"
        if ways == "tracked":
            found = chooser.choose(scores)
        elif ways == "compiled":
            found = chooser._choose_compiled(scores)
        else:
            thresholds, last = gpu.plain_cut(scores, [counts] if joint else counts, joint)
            found = [gpu.compare(s, t, e) for s, t, e in zip(scores, thresholds, last, strict=True)]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True)), step
        scores = [
            round_at_random(s.float() + 0.001 * torch.randn(s.shape, generator=stream), make_key(step, "s"), STEP, n)
            for n, s in enumerate(scores)
        ]


def test_scores_gradients_and_moments_are_bf16():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    supermask.learn(model, 0.3, score_dtype=torch.bfloat16)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = RoundedOptimizer(parameters, "adam", lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    kept = [t for p in parameters for name, t in optimizer.state[p].items() if name != "step"]
    assert {t.dtype for t in (*parameters, *(p.grad for p in parameters), *kept)} == {torch.bfloat16}
    assert model[0].weight.dtype == torch.float32
    supermask.check(model)
    before = {name: value.clone() for name, value in supermask.masks_of(model).items()}
    baked = supermask.bake(model)
    for name, mask in before.items():
        assert torch.equal(baked.get_parameter(name) != 0, mask)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_takes_bf16_scores_or_says_that_it_does_not(rule):
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    if not RULES[rule][0]().compares_only:
        with pytest.raises(ValueError, match="score_dtype goes with rules that only compare scores"):
            learn(model, rule, score_dtype=torch.bfloat16)
        return
    learn(model, rule, score_dtype=torch.bfloat16)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in learned} == {torch.bfloat16}
    # The same numbers in fp32 choose the same, and get the same gradients but for their rounding.
    other = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    learn(other, rule, score_dtype=torch.float32)
    for parameter, wide in zip(model.parameters(), other.parameters(), strict=True):
        wide.data.copy_(parameter.data)
    assert supermask.masks_of(model) == supermask.masks_of(other)
    for some in (model, other):
        some(torch.ones(3, 16)).sum().backward()
    for parameter, wide in zip(model.parameters(), other.parameters(), strict=True):
        assert wide.grad is None or torch.equal(parameter.grad, wide.grad.bfloat16())
    assert all(parameter.grad.abs().max() > 0 for parameter in learned)
    supermask.check(model)


def test_every_rule_that_only_compares_is_tried():
    ours = {name for name, rule in supermask.live.learning.RULES.items() if rule.compares_only}
    assert ours == {"biprop", "edge-popup", "iterand", "signed", "threshold"}
    assert {rule for rule, _ in RULES.values() if isinstance(rule, type) and rule.compares_only} >= {EdgePopup, IteRand}


def test_another_type_is_refused():
    with pytest.raises(ValueError, match=r"expected score_dtype torch.float32 or torch.bfloat16, got torch.float16"):
        supermask.learn(nn.Linear(4, 4), 0.5, score_dtype=torch.float16)


SEARCH = {"threads": 1, "progress": False, "score_dtype": "bf16"}


@pytest.mark.parametrize(("method", "optimizer"), [*itertools.product(["edge-popup"], ["sgd", "adam", "adamw"]),
                                                   ("signed", "sgd")])  # fmt: skip
def test_a_search_that_was_stopped_gives_the_same_bytes(method, optimizer, tmp_path):
    lr = 0.1 if optimizer == "sgd" else 0.01
    flags = {**SEARCH, "epochs": 3, "optimizer": optimizer, "lr": lr}
    whole = search(method, runs=tmp_path / "whole", name="run", **flags)
    with stopping_at(7, 12), pytest.MonkeyPatch.context():
        for _ in range(2):
            with pytest.raises(Interrupted):
                search(method, runs=tmp_path / "stopped", name="run", **flags)
    again = search(method, runs=tmp_path / "stopped", name="run", **flags)
    assert (again.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert whole.ticket.meta["config"]["score_dtype"] == "bf16"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_ranks_scores_has_the_flag(method, tmp_path):
    more = {"tasks": "permuted:2"} if method == "supsup" else {}
    run = search(method, runs=tmp_path, **SEARCH, epochs=2, **more)
    assert run.finished
    assert method == "supsup" or run.summary["density"] == 0.5


def test_methods_that_rank_no_scores_do_not_have_it(tmp_path):
    with pytest.raises(RequestError, match=r"--score-dtype is a flag of .*edge-popup"):
        search("imp", runs=tmp_path, **SEARCH)


def test_edge_popup_learns_as_much_in_bf16(tmp_path):
    """Within the noise of seeds."""
    found = {}
    for kind in ("fp32", "bf16"):
        flags = {**SEARCH, "score_dtype": kind, "epochs": 15}
        runs = [search("edge-popup", runs=tmp_path / kind, seed=seed, **flags) for seed in range(3)]
        found[kind] = [run.summary["test_accuracy"] for run in runs]
    spread = np.std([*found["fp32"], *found["bf16"]], ddof=1)
    assert abs(np.mean(found["fp32"]) - np.mean(found["bf16"])) < 2 * spread + 1.0
    assert found["fp32"] != found["bf16"]
    assert min(found["bf16"]) > 85
