from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from supermask.allocation import global_, largest_remainder, layerwise
from supermask.selection import count_kept, kth_largest, settle_ties, top_k


def slow_top_k(keys: np.ndarray, k: int) -> np.ndarray:
    """Sort by (key descending, position ascending) and take the first k."""
    order = sorted(range(keys.size), key=lambda i: (-keys.flat[i], i))
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
        assert kth_largest(keys, k) == threshold
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
        assert sum(global_(scores, density).values()) == count_kept(density, 23)
        assert layerwise(scores, density) == {name: count_kept(density, s.numel()) for name, s in scores.items()}
    assert global_(scores, 0.5) == {"a": 9, "b": 3, "c": 0}


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
