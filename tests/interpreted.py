"""The kernels of selection, interpreted by Triton: what `test_radix.py` runs in a process of its own.

TRITON_INTERPRET=1 pytest tests/interpreted.py          # Triton must be imported with it
"""

from __future__ import annotations

import contextlib
import os
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from products import thin
from test_selection import KINDS, counts_to_try, sorted_top_k
from torch import Tensor, nn

import supermask
from supermask.live import zeroing
from supermask.masks.random_numbers import key_of, uniform_floats
from supermask.selection import gpu
from supermask.selection.top_k import top_k
from supermask.selection.tracking import Chooser

pytest.importorskip("triton")
from supermask.kernels import gpu as kernels
from supermask.kernels import philox, radix

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def interpreted():
    """`radix` in blocks so small that few keys are in many of them."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
    with mock.patch.multiple(radix, BLOCK=64, _AT_ONCE=4):
        yield radix


def expected(scores: list[Tensor], counts: list[int], joint: bool) -> list[Tensor]:
    if not joint:
        return [top_k(score.abs(), k) for score, k in zip(scores, counts, strict=True)]
    whole = top_k(torch.cat([score.abs().reshape(-1) for score in scores]), counts[0])
    parts = whole.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def check(kernels, scores: list[Tensor], counts: list[int], joint: bool) -> None:
    wanted = expected(scores, counts, joint)
    found = kernels.mark(scores, counts, joint)
    assert same(found, wanted)
    assert [mask.stride() for mask in found] == [score.stride() for score in scores]
    for cut in (kernels.cut, gpu.plain_cut):
        thresholds, last = cut(scores, torch.tensor(counts, dtype=torch.int32), joint)
        assert thresholds.dtype == last.dtype == torch.int32
        assert same([gpu.compare(s, *ends) for s, *ends in zip(scores, thresholds, last, strict=True)], wanted)


shapes = st.lists(
    st.sampled_from([(1,), (7,), (65,), (8, 16), (200,), (3, 4, 3, 3), (8, 3, 1, 2)]), min_size=1, max_size=4
)


@given(shapes, st.sampled_from(DTYPES), st.booleans(), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_kernels_choose_what_top_k_does(interpreted, layers, dtype, joint, data):
    draw = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    values = np.array([-np.inf, -1.5, -0.0, 0.0, 1e-40, 0.25, 0.25000003, 3.0, np.inf], dtype=np.float32)
    scores = []
    for shape in layers:
        few = data.draw(st.booleans())
        keys = draw.choice(values, shape) if few else draw.normal(size=shape).astype(np.float32)
        score = torch.from_numpy(keys).to(dtype)
        scores.append(score.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else score)
    sizes = [score.numel() for score in scores]
    counts = [data.draw(st.integers(0, size)) for size in ([sum(sizes)] if joint else sizes)]
    check(interpreted, scores, counts, joint)


@pytest.mark.parametrize("kind", thin(KINDS, 3))
def test_every_kind_of_keys(kind, interpreted):
    keys = KINDS[kind](np.random.default_rng(0).standard_normal(3000, dtype=np.float32))
    with mock.patch.multiple(radix, BLOCK=1024, _AT_ONCE=2):
        for k in sorted(map(int, counts_to_try(keys)))[::4]:
            check(interpreted, [torch.from_numpy(keys)], [k], False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_keys_in_blocks_of_their_size(kind, interpreted):
    keys = KINDS[kind](np.random.default_rng(0).standard_normal(100_000, dtype=np.float32))
    with mock.patch.multiple(radix, BLOCK=4096, _AT_ONCE=1024):
        for k in map(int, counts_to_try(keys)):
            check(interpreted, list(torch.from_numpy(keys).split([60_000, 39_000, 1_000])), [k], True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_million_keys_in_plain_pytorch(kind):
    keys = KINDS[kind](np.random.default_rng(0).standard_normal(10_000_000, dtype=np.float32))
    for k in (1, 1_000_000, 5_000_000, 9_999_999):
        score = torch.from_numpy(keys)
        ((threshold,), (last,)) = gpu.plain_cut([score], [k], False)
        assert np.array_equal(gpu.compare(score, threshold, last).numpy(), sorted_top_k(np.abs(keys), k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("joint", [False, True])
def test_of_scores_that_are_no_numbers_nothing_is_kept(joint, dtype, interpreted):
    scores = [torch.linspace(1, 2, 100).to(dtype) for _ in range(3)]
    scores[1][70] = -torch.nan
    counts = [150] if joint else [50, 50, 50]
    wanted = [0, 0, 0] if joint else [50, 0, 50]
    for cut in (interpreted.cut, gpu.plain_cut):
        ends = zip(*cut(scores, counts, joint), strict=True)
        assert [int(gpu.compare(s, *end).sum()) for s, end in zip(scores, ends, strict=True)] == wanted
    assert [int(mask.sum()) for mask in interpreted.mark(scores, counts, joint)] == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_are_masked_to_the_bit(dtype, interpreted):
    torch.manual_seed(0)
    scores = [torch.randn(300).round(decimals=1), torch.randn(6, 5, 3, 3).contiguous(memory_format=torch.channels_last)]
    weights = [torch.randn_like(score).to(dtype) for score in scores]
    weights[0][:9] = torch.tensor([-0.0, torch.nan, torch.inf, -torch.inf, 0.0, 1e-40, -0.0, -torch.nan, 1.0])
    for counts, joint in (([150, 27], False), ([100], True)):
        found = interpreted.mask(scores, weights, counts, joint)
        for one, weight, mask in zip(found, weights, expected(scores, counts, joint), strict=True):
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            wanted = torch.where(mask, weight.view(bits), 0)
            assert torch.equal(one.view(bits), wanted) and one.stride() == weight.stride()


def test_as_many_kernels_whatever_the_number_of_layers(interpreted):
    counted = []
    for layers in (1, 40):
        scores = [torch.randn(200) for _ in range(layers)]
        with mock.patch.object(radix, "kernels") as kernels:
            radix.mark(scores, [100] * layers, False)
        counted.append(sum(1 for call in kernels.mock_calls if call[0] == "" or call[0].endswith("__getitem__()")))
    assert counted[0] == counted[1] == 11


# --- as the rules use it


@contextlib.contextmanager
def on_a_gpu(kernels=None):
    """As if tensors of the CPU were a GPU's: ranked by interpreted kernels, or by what stands in for them."""

    with mock.patch.object(gpu, "ranks", gpu.are_ranked), mock.patch.object(gpu, "_kernels", return_value=kernels):
        yield


def network(layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    return net.to(memory_format=layout)


def train(net: nn.Module, forward=None, fall: bool = False) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, momentum=0.9)
    draw = torch.Generator().manual_seed(1)
    for step in range(2):
        if fall:
            supermask.change_density(net, 0.9 - 0.1 * step)
        x, y = torch.randn(8, 3, 8, 8, generator=draw), torch.arange(8) % 5
        optimizer.zero_grad()
        nn.functional.cross_entropy((forward or net)(x), y).backward()
        optimizer.step()
    return dict(net.state_dict())


@pytest.mark.parametrize("way", ["kernels", "plain"])
@pytest.mark.parametrize("allocation", ["layerwise", "global", "erk"])
@pytest.mark.parametrize("fall", [False, True])
def test_edge_popup_learns_the_same(way, allocation, fall, interpreted):
    found = []
    for context in (contextlib.nullcontext(), on_a_gpu(interpreted if way == "kernels" else None)):
        net = network(torch.channels_last if fall else torch.contiguous_format)
        supermask.learn(net, 0.5, allocation=allocation)
        with context:
            state = train(net, fall=fall)
            masks = supermask.masks_of(net)
            supermask.check(net)
        found.append((state, masks))
    assert found[0][1] == found[1][1]
    assert found[0][0].keys() == found[1][0].keys()
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])


def test_a_layer_that_no_gradient_reaches_has_none():
    net = network()
    supermask.learn(net, 0.5)
    x = torch.randn(2, 3, 8, 8)
    with on_a_gpu():
        outputs = {}
        net[2].register_forward_hook(lambda module, inputs, output: outputs.setdefault("inner", output))
        net(x)
        outputs["inner"].sum().backward()
    assert net[4].weight_scores.grad is None
    assert all(net[layer].weight_scores.grad.abs().sum() > 0 for layer in (0, 2))


@pytest.mark.parametrize("program", ["biprop", "signed", "gem-miner", "threshold", "iterand", "bernoulli"])
def test_other_rules_choose_the_same(program, interpreted):
    found = []
    for context in (contextlib.nullcontext(), on_a_gpu(interpreted)):
        net = network()
        supermask.learn(net, 0.5, program=program)
        with context:
            found.append((train(net), supermask.masks_of(net)))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])


def test_it_compiles_and_a_density_that_falls_compiles_nothing_anew():
    """What is compiled finds the cuts by one operation, here that of the CPU, and compares with them."""
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        net = network()
        supermask.learn(net, 0.5)
        with on_a_gpu():
            train(net)
            with torch._dynamo.config.patch(error_on_recompile=False):
                forward = torch.compile(net) if compiled else net
                x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
                supermask.change_density(net, 0.45)
                outputs = [forward(x).detach()]
                with torch._dynamo.config.patch(error_on_recompile=True):
                    for density in (0.4, 0.2):
                        supermask.change_density(net, density)
                        outputs.append(forward(x).detach())
            found.append(outputs)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(found[0][1], found[0][2])


def test_masks_of_a_chooser_are_the_same_when_it_is_compiled():
    torch.manual_seed(0)
    scores = [torch.randn(500).round(decimals=1), torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)]
    for counts in ([250, 30], 120):
        wanted = Chooser(counts).choose(scores)
        with on_a_gpu():
            compiled = torch.compile(Chooser(counts).choose, fullgraph=True)
            assert same(compiled(scores), wanted)


def test_what_the_kernels_cannot_rank_is_ranked_otherwise(interpreted):
    good = torch.randn(8)
    assert gpu._is_ranked(good, good)
    for bad in (good.double(), torch.randn(4, 6)[:, ::2], torch.empty(0), good.to("meta"), torch.ones(8).half()):
        assert not gpu._is_ranked(bad, good)
    assert gpu.are_ranked([good, good])
    with mock.patch.object(gpu, "_MOST", 15):
        assert not gpu.are_ranked([good, good]), "positions are int32"
    assert radix.order_of([]) is None and radix.order_of([good.double()]) is None
    torch.func.vmap(lambda score: (gpu._is_ranked(score, score) and pytest.fail("no address"), score)[1])(
        torch.randn(3, 4)
    )


def test_kernels_that_do_not_work_are_told_of_and_not_used(monkeypatch):
    class OfAGpu:
        type = "cuda"

    def broken(device):
        raise RuntimeError("no such driver")

    assert kernels.find("radix", torch.device("cpu")) is None
    for is_right, told in ((broken, "RuntimeError: no such driver"), (lambda device: False, "other values")):
        for name in ("radix", "philox"):
            monkeypatch.setattr(f"supermask.kernels.{name}.is_right_on", is_right)
            with pytest.warns(UserWarning, match=f"{name} does not work on .*{told}"):
                assert kernels.find.__wrapped__(name, OfAGpu()) is None


def test_the_kernels_are_right_where_they_are_interpreted(interpreted):
    assert interpreted.is_right_on(torch.device("cpu")) and philox.is_right_on(torch.device("cpu"))


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 3), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_noise_is_that_of_the_cpu_to_the_bit(count, step, stream, seed):
    key = key_of(seed, "noise")
    with mock.patch.object(philox, "BLOCK", 64):
        found = philox.draw_uniform(count, key, step, stream, torch.device("cpu")).numpy()
    assert np.array_equal(found, uniform_floats(count, key, step, stream))


def test_a_rule_draws_by_the_kernel(monkeypatch):
    drawn = []
    for kernel in (None, philox):
        monkeypatch.setattr(kernels, "find", lambda name, device, kernel=kernel: kernel)
        net = network()
        supermask.learn(net, 0.5, program="hard-concrete", weights="keep")
        drawn.append(train(net))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_held_weights_and_gradients_are_cleared_by_one_kernel(dtype, interpreted, monkeypatch):
    torch.manual_seed(0)
    weights = [
        torch.randn(300),
        torch.randn(6, 5, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(7, 9).T,
    ]
    weights = [weight.to(dtype) for weight in weights]
    weights[0][:4] = torch.tensor([torch.nan, -0.0, torch.inf, 1.0])
    masks = [torch.rand(weight.shape) < 0.5 for weight in weights]
    masks[0][:4] = False
    bits = [zeroing.make_bits(mask, weight) for mask, weight in zip(masks, weights, strict=True)]
    wanted = [weight.clone() for weight in weights]
    for weight, each in zip(wanted, bits, strict=True):
        zeroing.zero(weight, each)
    calls = []
    clear = interpreted.clear
    monkeypatch.setattr(zeroing.gpu, "find", lambda name, device: interpreted)
    monkeypatch.setattr(interpreted, "clear", lambda *given: calls.append(clear(*given)))
    with mock.patch.object(Tensor, "is_cuda", True):
        zeroing.zero_all(weights, bits)
        assert len(calls) == 1
        zeroing.zero_all(weights[:1], bits[:1])  # of one the ordinary way is one kernel too
        zeroing.zero_all(
            [weight.double() for weight in weights],
            [zeroing.make_bits(m, w.double()) for m, w in zip(masks, weights, strict=True)],
        )
        zeroing.zero_all([], [])
    assert len(calls) == 1
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    assert all(torch.equal(one.view(whole), other.view(whole)) for one, other in zip(weights, wanted, strict=True))
