from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from products import combine

from supermask.choosing.allocation import global_, largest_remainder, layerwise
from supermask.selection import top_k as selection
from supermask.selection.top_k import (
    SMALL,
    STEP,
    count_kept,
    draw_sample,
    kth_by_topk,
    kth_largest,
    plain_top_k,
    settle_ties,
    top_k,
)


def slow_top_k(keys: np.ndarray, k: int) -> np.ndarray:
    """Sort by (key descending, position ascending) and take the first k."""
    order = sorted(range(keys.size), key=lambda i: (-keys.flat[i], i))
    mask = np.zeros(keys.size, dtype=bool)
    mask[order[:k]] = True
    return mask.reshape(keys.shape)


def sorted_top_k(keys: np.ndarray, k: int) -> np.ndarray:
    """As `slow_top_k`, for many keys: a stable sort of the reversed keys, read from its end."""
    order = keys.size - 1 - np.argsort(keys.reshape(-1)[::-1], kind="stable")[::-1]
    mask = np.zeros(keys.size, dtype=bool)
    mask[order[:k]] = True
    return mask.reshape(keys.shape)


# Few distinct values, so that ties are the rule.
tied_floats = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-40, 0.25, 0.25000003, 3.0, np.inf])


@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=6), elements=tied_floats), st.data())
@settings(max_examples=200, deadline=None)
def test_top_k_equals_the_sort(keys, data):
    k = data.draw(st.integers(0, keys.size))
    assert np.array_equal(top_k(torch.from_numpy(keys), k).numpy(), slow_top_k(keys, k))


@given(
    arrays.arrays(
        np.float32, arrays.array_shapes(max_dims=3, max_side=9), elements=tied_floats | st.floats(-9, 9, width=32)
    ),
    st.sampled_from([1, 7, 64, STEP]),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_the_sampled_search_equals_the_sort(keys, step, data):
    """Sample and steps small enough that arrays of a few keys take every way through the search."""
    k = data.draw(st.integers(0, keys.size))
    with mock.patch.multiple(selection, SMALL=1, STEP=step):
        assert np.array_equal(top_k(torch.from_numpy(keys), k).numpy(), slow_top_k(keys, k))


def barred(keys: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.random.default_rng(1).random(keys.size) < share, -np.inf, keys).astype(np.float32)


# What a sample may be bad at: order, ties of every weight, gaps, scales, periods. From normal keys to keys.
KINDS = {
    "normal": lambda x: x,
    "magnitude": np.abs,
    "uniform": lambda x: np.random.default_rng(0).random(x.size, dtype=np.float32),
    "sorted": np.sort,
    "reversed": lambda x: -np.sort(-x),
    "constant": np.ones_like,
    "signs": np.sign,
    "one in ten": lambda x: (x > 1.28).astype(np.float32),
    "two halves": lambda x: (np.arange(x.size) > x.size // 2).astype(np.float32),
    "relu": lambda x: np.maximum(x, 0),
    "rounded": lambda x: np.round(x * 3),
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16().float().numpy(),
    "half barred": lambda x: barred(np.abs(x), 0.5),
    "most barred": lambda x: barred(np.abs(x), 0.95),
    "infinite": lambda x: -barred(x, 0.3),
    "subnormal": lambda x: x * np.float32(1e-40),
    "heavy tails": lambda x: np.exp(9 * x),
    "sawtooth": lambda x: (np.arange(x.size) % 100).astype(np.float32),
    "columns": lambda x: x * np.logspace(-5, 5, 25, dtype=np.float32)[np.arange(x.size) % 25],
    "zeros of both signs": lambda x: np.where(x > 0.5, x, np.copysign(np.float32(0), x)),
}


def counts_to_try(keys: np.ndarray) -> set[int]:
    """Densities, both ends, and each side of the heaviest tie."""
    size, (values, heads) = keys.size, np.unique(keys, return_counts=True)
    above = int((keys > values[heads.argmax()]).sum())
    counts = {round(size * density) for density in (0.01, 0.1, 0.5, 0.9)} | {1, 2, 40, size - 40, size - 1}
    return counts | {
        c for c in (above - 1, above, above + 1, above + heads.max() - 1, above + heads.max()) if 0 < c < size
    }


@combine(kind=KINDS, size=[SMALL - 1, SMALL, 10_007, 1 << 14, (1 << 14) + 1, 40_005])
def test_every_kind_of_keys_at_every_size(kind, size):
    keys = KINDS[kind](np.random.default_rng(size).standard_normal(size, dtype=np.float32))
    with mock.patch.object(selection, "STEP", 1 << 14):
        for k in map(int, counts_to_try(keys)):
            assert np.array_equal(top_k(torch.from_numpy(keys), k).numpy(), sorted_top_k(keys, k)), k


def work(keys: torch.Tensor, k: int) -> tuple[int, int]:
    """How many passes `top_k` takes to mark keys, and how many keys it sorts out by partition."""
    with (
        mock.patch.object(selection, "mark", wraps=selection.mark) as mark,
        mock.patch.object(selection, "mark_by_partition", wraps=selection.mark_by_partition) as partition,
        mock.patch.object(selection, "STEP", 1 << 14),
    ):
        top_k(keys, k)
    return mark.call_count, sum(call.args[0].size for call in partition.call_args_list)


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_is_short(kind):
    """Ties or not: few passes, and a partition of a small part of the keys."""
    keys = KINDS[kind](np.random.default_rng(0).standard_normal(100_000, dtype=np.float32))
    for k in (50_000, 10_000, 1_000, 3):
        passes, partitioned = work(torch.from_numpy(keys), k)
        assert passes <= 4 and partitioned < 10_000, k


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.bfloat16, torch.float16])
def test_the_whole_range_of_a_dtype(dtype):
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    stream = np.random.default_rng(0)
    keys = torch.from_numpy(stream.uniform(float(limits.min) / 2, float(limits.max) / 2, 50_000)).to(dtype)
    keys[stream.integers(0, 50_000, 30)] = limits.max
    keys[stream.integers(0, 50_000, 30)] = limits.min
    for k in (3, 40, 25_000, 49_960, 49_997):
        wide = keys.to(torch.float64 if dtype.is_floating_point else torch.int64).numpy()
        assert np.array_equal(top_k(keys, k).numpy(), sorted_top_k(wide, k))
        passes, partitioned = work(keys, k)
        assert passes <= 5 and partitioned < 5_000, k


@pytest.mark.parametrize("lie", [-5.0, 0.0, 0.3, 5.0, np.inf])
@pytest.mark.parametrize("size", [5_000, 2 * STEP])
def test_keys_made_against_the_sample(lie, size):
    keys = np.abs(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    stride = math.ceil(size / (draw_sample(keys).size - 2))
    assert math.gcd(stride, size) == 1
    keys[::stride] = lie
    for k in (size // 100, size // 2, size - 7):
        assert np.array_equal(top_k(torch.from_numpy(keys), k).numpy(), sorted_top_k(keys, k))


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda t: t[:1].expand(t.shape),
    "shifted": lambda t: torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(t.shape),
}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
]


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 30, 10_000]),
    st.floats(0, 1),
    st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_any_layout_and_dtype_equals_the_plain_way(shape, layout, dtype, steps, density, seed):
    raw = np.random.default_rng(seed).integers(0, steps + 1, shape)
    keys = LAYOUTS[layout](torch.from_numpy(raw / (1 if not dtype.is_floating_point else 7.0)).to(dtype))
    k = round(density * keys.numel())
    mask = top_k(keys, k)
    widened = keys.contiguous().to(torch.float64 if dtype.is_floating_point else torch.int64).numpy()
    assert np.array_equal(mask.numpy(), sorted_top_k(widened, k))
    assert k == 0 or torch.equal(mask, plain_top_k(keys, k))
    if layout in ("channels last", "transposed") and 0 < k < keys.numel() and not keys.is_contiguous():
        assert mask.stride() == keys.stride()


def test_the_keys_stay_as_they_are():
    keys = torch.randn(10_000, requires_grad=True)
    before = keys.detach().clone()
    mask = top_k(keys, 100)
    assert torch.equal(keys, before) and not mask.requires_grad
    assert torch.equal(mask, top_k(before, 100))


def test_keys_that_are_no_numbers_do_not_stop_a_run():
    """Who asks for a mask learns about NaN elsewhere: by `prune`, or `check` of the learned scores."""
    for share in (0.001, 0.4, 1.0):
        keys = torch.randn(10_000)
        keys[: int(share * 10_000)] = math.nan
        for k in (1, 5_000, 9_999):
            assert top_k(keys, k).shape == keys.shape


def test_threads_do_not_share_anything():
    keys = [torch.from_numpy(np.random.default_rng(i).standard_normal(20_000, dtype=np.float32)) for i in range(4)]
    expected = [top_k(key, 9_000) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda key: top_k(key, 9_000), keys * 20))
    assert all(torch.equal(mask, right) for mask, right in zip(masks, expected * 20, strict=True))


def test_traced_and_on_a_device_the_plain_way_is_taken():
    keys = torch.randint(0, 50, (10_000,)).float()
    with mock.patch.object(selection, "mark_largest", side_effect=AssertionError("needs the values on the host")):
        traced = torch.compile(top_k, fullgraph=True, backend="eager")(keys, 300)
        # A meta tensor has no values: a host synchronization would raise.
        assert top_k(keys.to("meta"), 300).shape == keys.shape
    assert torch.equal(traced, top_k(keys, 300))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_dtypes(dtype):
    keys = torch.tensor([3, 1, 3, 2, 3, 0]).to(dtype)
    for k in range(7):
        assert np.array_equal(top_k(keys, k).numpy(), slow_top_k(keys.double().numpy(), k))


def test_memory_format_does_not_matter():
    keys = torch.randint(0, 4, (4, 6, 5, 3)).float()
    for laid_out in (keys.to(memory_format=torch.channels_last), keys.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not laid_out.is_contiguous()
        assert torch.equal(top_k(laid_out, 100), top_k(keys, 100))


def test_all_equal_keeps_the_first():
    assert top_k(torch.ones(2, 3), 4).tolist() == [[True, True, True], [True, False, False]]


def test_device_path_of_ties_equals_the_host_path():
    keys = torch.randint(0, 5, (1000,)).float()
    for k in (1, 17, 500, 999):
        threshold = keys.kthvalue(keys.numel() - k + 1).values
        assert kth_largest(keys, k) == kth_by_topk(keys.reshape(-1), k) == threshold
        assert torch.equal(settle_ties(keys, threshold, k), top_k(keys, k))


def test_more_than_there_is_is_refused():
    for k in (-1, 4):
        with pytest.raises(ValueError, match=f"cannot keep {k} of 3"):
            top_k(torch.zeros(3), k)


@pytest.mark.parametrize(
    ("density", "size", "kept"), [(0.5, 5, 3), (0.1, 5, 1), (1, 7, 7), (1 / 7, 7, 1), (0.05, 9, 0)]
)
def test_count_kept(density, size, kept):
    assert count_kept(density, size) == kept == math.floor(density * size + 0.5)


@pytest.mark.parametrize("density", [0, -0.1, 1.01, math.nan])
def test_densities_outside_are_refused(density):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        count_kept(density, 10)


def test_allocations_are_exact_with_ties():
    scores = {"a": torch.ones(3, 3), "b": torch.ones(10), "c": torch.zeros(4)}
    for density in (1 / 23, 0.1, 0.37, 0.5, 0.9, 1):
        assert sum(global_(scores, density, {}).values()) == count_kept(density, 23)
        assert layerwise(scores, density, {}) == {name: count_kept(density, s.numel()) for name, s in scores.items()}
    assert global_(scores, 0.5, {}) == {"a": 9, "b": 3, "c": 0}


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=6),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_largest_remainder_is_exact_and_within_limits(layers, share):
    limits = {str(i): size for i, (size, _) in enumerate(layers)}
    shares = {str(i): size * part for i, (size, part) in enumerate(layers)}
    total = round(share * sum(limits.values()))
    counts = largest_remainder(shares, total, limits)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= limits[name] for name in limits)


def test_largest_remainder_rounds_the_largest_fractions_up():
    assert largest_remainder({"a": 1.2, "b": 2.7, "c": 3.1}, 7, {"a": 9, "b": 9, "c": 9}) == {"a": 1, "b": 3, "c": 3}
    with pytest.raises(ValueError, match="cannot keep 5 units of 4"):
        largest_remainder({"a": 4.0}, 5, {"a": 4})
