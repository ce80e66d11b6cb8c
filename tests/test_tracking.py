"""Selection from where it ended the last time is `top_k`, whatever has become of the keys."""

from __future__ import annotations

import copy
import gc
import itertools
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import combine, thin
from test_selection import sorted_top_k

from supermask.kernels import build as native
from supermask.selection import top_k as selection
from supermask.selection import tracking
from supermask.selection.top_k import SMALL
from supermask.selection.tracking import Chooser, Tracker, cut_by_sorting

SIZE = 3 * SMALL + 17
COMPILER = next(filter(None, map(shutil.which, native.COMPILERS)), None)


def by_cut(keys: np.ndarray, cut: tracking.Cut) -> np.ndarray:
    """What a cut says, read naively."""
    return (keys > cut.threshold) | ((keys == cut.threshold) & (np.arange(keys.size) <= cut.last))


# Ways in which keys become other keys: what a step does, and what it should never do.
MOVES = {
    "a step": lambda keys, stream: keys + stream.normal(0, 1e-3, keys.size),
    "drift": lambda keys, stream: keys * 0.999 + 1e-3,
    "none": lambda keys, stream: keys,
    "a jump": lambda keys, stream: keys * 5,
    "all anew": lambda keys, stream: np.abs(stream.normal(0, 1, keys.size)),
    "all the same": lambda keys, stream: np.full(keys.size, 0.25),
    "rounded": lambda keys, stream: np.round(keys * 4) / 4,
    "mostly zero": lambda keys, stream: np.where(stream.random(keys.size) < 0.9, 0.0, keys),
    "huge": lambda keys, stream: keys * 1e38,
    "infinite": lambda keys, stream: np.where(stream.random(keys.size) < 0.3, np.inf, keys),
    "tiny": lambda keys, stream: keys * 1e-42,
}


@given(
    st.lists(st.sampled_from(list(MOVES)), min_size=1, max_size=8),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 199),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_marks_and_cuts_are_those_of_a_sort_whatever_the_keys_do(moves, dtype, k, seed):
    stream = np.random.default_rng(seed)
    keys = np.abs(stream.normal(0, 1, 200)).astype(dtype)
    tracker = Tracker(k)
    with mock.patch.object(tracking, "SMALL", 1), mock.patch.object(tracking, "_MOST", 0.5):
        for move in moves:
            with np.errstate(all="ignore"):
                keys = np.abs(np.nan_to_num(MOVES[move](keys, stream), nan=0.0, posinf=np.inf)).astype(dtype)
            expected = sorted_top_k(keys, k)
            assert np.array_equal(tracker.mark(keys), expected), move
            assert np.array_equal(by_cut(keys, tracker.cut), expected), move
            assert cut_by_sorting(keys, k).threshold == tracker.cut.threshold
            assert np.array_equal(by_cut(keys, cut_by_sorting(keys, k)), expected)


def test_keys_that_move_little_are_not_searched_from_nothing_again(monkeypatch):
    searched = []
    monkeypatch.setattr(tracking, "mark_largest", lambda *args: searched.append(1) or selection.mark_largest(*args))
    stream = np.random.default_rng(0)
    keys, velocity = np.abs(stream.normal(0, 1, SIZE)).astype(np.float32), np.zeros(SIZE, np.float32)
    tracker, partitioned = Tracker(SIZE // 3), []
    settle = tracker.settle
    tracker.settle = lambda positions, *rest: partitioned.append(positions.size) or settle(positions, *rest)
    for _ in range(50):
        velocity = 0.9 * velocity + stream.normal(0, 1e-4, SIZE).astype(np.float32)
        keys = np.abs(keys + velocity)
        assert np.array_equal(tracker.mark(keys), sorted_top_k(keys, tracker.k))
    assert len(searched) <= 3
    assert np.median(partitioned) < 0.02 * SIZE


SCORES = {
    "several": lambda: [torch.randn(70, 90), torch.randn(SMALL + 5), torch.randn(5, 3), torch.randn(1, 1)],
    "channels last": lambda: [torch.randn(40, 30, 3, 3).to(memory_format=torch.channels_last), torch.randn(100, 60)],
    "transposed": lambda: [torch.randn(90, 70).t(), torch.randn(8, 8)],
    "double": lambda: [torch.randn(70, 90, dtype=torch.float64), torch.randn(9, dtype=torch.float64)],
    "bfloat16": lambda: [torch.randn(80, 90).bfloat16(), torch.randn(9, 9).bfloat16()],
    "half": lambda: [torch.randn(80, 90).half(), torch.randn(9, 9).half()],
    "tied": lambda: [torch.randn(80, 90).sign(), torch.randn(90, 90).round()],
}
COUNTS = {
    "layerwise": lambda sizes: [max(1, size // 3) for size in sizes],
    "all": lambda sizes: list(sizes),
    "none": lambda sizes: [0 for _ in sizes],
    "global": lambda sizes: sum(sizes) // 3,
    "global all": lambda sizes: sum(sizes),
}


def walk(scores: list[torch.Tensor], steps: int):
    """Scores of several steps, the last of them a jump."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        size = 1.0 if step == steps - 1 else 0.01
        yield scores
        noise = [torch.randn(score.shape, generator=generator) * size for score in scores]
        scores = [
            torch.empty_like(s).copy_(s.float() + n if step % 2 else s) for s, n in zip(scores, noise, strict=True)
        ]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("kind", SCORES)
def test_choices_are_top_k_of_the_magnitudes(kind, counts):
    torch.manual_seed(0)
    scores = SCORES[kind]()
    chooser = Chooser(COUNTS[counts]([score.numel() for score in scores]))
    for now in walk(scores, 6):
        for mask, score, plain in zip(chooser.choose(now), now, chooser.choose_from_nothing(now), strict=True):
            assert torch.equal(mask, plain)
            assert mask.stride() == score.stride(), "the layout of the scores, and so of the weights"


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", thin(itertools.product(SCORES, COUNTS), 9), ids="-".join)
def test_compiled_choices_are_the_same(case, backend):
    kind, counts = case
    torch.manual_seed(0)
    torch.compiler.reset()
    scores = SCORES[kind]()
    chooser = Chooser(COUNTS[counts]([score.numel() for score in scores]))
    compiled = torch.compile(chooser.choose, fullgraph=True, backend=backend)
    for now in walk(scores, 6):
        for mask, plain in zip(compiled(now), chooser.choose_from_nothing(now), strict=True):
            assert torch.equal(mask, plain)
    torch.compiler.reset()


@pytest.mark.parametrize("compiler", ["there", pytest.param("missing", marks=pytest.mark.slow), "failing"])
def test_compiled_choices_begin_where_the_last_ended_with_a_compiler_or_without(compiler, monkeypatch, tmp_path):
    """Keys that move little are not searched from nothing again."""
    native.build.cache_clear()
    searched, built = [], compiler == "there" and COMPILER is not None
    monkeypatch.setattr(tracking, "mark_largest", lambda *args: searched.append(1) or selection.mark_largest(*args))
    if compiler == "missing":
        monkeypatch.setattr(native, "COMPILERS", ())
        monkeypatch.delenv("CXX", raising=False)
    if compiler == "failing":
        broken = tmp_path / "c++"
        broken.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        with pytest.warns(UserWarning, match=r"could not build cut.cpp(.|\n)*no such flag"):
            native.build("cut")
    assert (native.build("cut") is not None) == built
    torch.compiler.reset()
    scores = [torch.randn(100, 130), torch.randn(7, 7)]
    chooser = Chooser([6000, 20])
    compiled = torch.compile(chooser.choose, fullgraph=True, backend="aot_eager")
    for _ in range(20):
        scores[0] += torch.randn(100, 130) * 1e-4
        for mask, plain in zip(compiled(scores), chooser.choose_from_nothing(scores), strict=True):
            assert torch.equal(mask, plain)
    torch.compiler.reset()
    native.build.cache_clear()
    assert len(searched) - 20 <= 2, "20 of them are those of choose_from_nothing"


@pytest.mark.skipif(COMPILER is None, reason="this machine has no C++ compiler")
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_the_cut_in_a_band_is_that_of_a_sort(data):
    """Several tensors, ties, infinities, too little room: the cut of all of them, or nothing."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=3))
    values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0, float("inf")])
    stream = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pool = data.draw(st.lists(values, min_size=1, max_size=8, unique=True))
    scores = [torch.from_numpy(stream.choice(pool, size)).to(dtype) for size in sizes]
    keys = torch.cat(scores).abs().numpy()
    k = data.draw(st.integers(1, keys.size))
    low, high = sorted(data.draw(st.lists(st.floats(0, 4), min_size=2, max_size=2)))
    room = data.draw(st.integers(0, keys.size))
    found = native.find_cut(scores, k, (low, high), room)
    expected = cut_by_sorting(keys, k)
    inside = int(((keys >= np.asarray(low, keys.dtype)) & (keys <= np.asarray(high, keys.dtype))).sum())
    in_band = np.asarray(low, keys.dtype) <= expected.threshold <= np.asarray(high, keys.dtype)
    assert (found is not None) == (in_band and inside <= room)
    if found is not None:
        assert found[0] == expected.threshold
        assert np.array_equal(by_cut(keys, tracking.Cut(*found)), sorted_top_k(keys, k))


def test_a_copy_remembers_for_itself_and_what_is_gone_is_forgotten(young_objects):
    scores = [torch.randn(SIZE)]
    chooser = Chooser([100])
    chooser.choose(scores)
    other = copy.deepcopy(chooser)
    assert other.counts == [100]
    assert other.number != chooser.number
    assert other.trackers[0].cut is None
    other.choose([score * 7 for score in scores])
    assert torch.equal(chooser.choose(scores)[0], chooser.choose_from_nothing(scores)[0])
    number = int(other.number)
    assert number in tracking._CHOOSERS
    del other
    gc.collect()
    assert number not in tracking._CHOOSERS


def test_a_choice_on_an_accelerator_asks_the_host_nothing():
    """On tensors without content whatever needs a number raises; they may lie on devices that are not here."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    device = "cuda" if torch.cuda.is_available() or torch.__version__ >= "2.7" else "meta"  # that of 2.6 starts CUDA
    with FakeTensorMode():
        scores = [torch.empty(300, 784, device=device), torch.empty(10, 3, device=device)]
        for counts in ([1000, 5], [300 * 784, 0], 5000):
            for mask, score in zip(Chooser(counts).choose(scores), scores, strict=True):
                assert mask.shape == score.shape
                assert mask.device == score.device
        with pytest.raises(DataDependentOutputException):
            scores[0].sum().item()


@combine(size=[4, 200, SIZE], bad=[1, 3, "all"])
def test_scores_that_are_no_numbers_break_nothing_here(size, bad):
    """They are reported where the loss is; the selection only must not fall over them, or for ever after."""
    chooser = Chooser([size // 2])
    good = torch.randn(size)
    broken = good.clone()
    broken[: size if bad == "all" else bad] = float("nan")
    torch.compiler.reset()
    compiled = torch.compile(chooser.choose, fullgraph=True, backend="aot_eager")
    for choose in (chooser.choose, compiled):
        choose([good])
        assert choose([broken])[0].sum() <= size // 2
        assert torch.equal(choose([good])[0], chooser.choose_from_nothing([good])[0])
    torch.compiler.reset()


def test_tensors_of_several_types_are_cut_each_in_its_own():
    torch.compiler.reset()
    scores = [torch.randn(100, 100), torch.randn(100, 100, dtype=torch.float64)]
    for counts in ([5000, 5000], [1, 9999]):
        chooser = Chooser(counts)
        compiled = torch.compile(chooser.choose, fullgraph=True, backend="aot_eager")
        for _ in range(3):
            for mask, plain in zip(compiled(scores), chooser.choose_from_nothing(scores), strict=True):
                assert torch.equal(mask, plain)
    torch.compiler.reset()


def test_an_infinite_threshold_is_not_remembered_for_ever():
    keys = np.abs(np.random.default_rng(0).normal(0, 1, SIZE)).astype(np.float32)
    tracker = Tracker(SIZE // 2)
    for now in (keys, np.full_like(keys, np.inf), keys, keys * np.float32(1.0001)):
        assert np.array_equal(tracker.mark(now), sorted_top_k(now, tracker.k))
    assert 0 < tracker.reach < 1
    before = tracker.reach, tracker.velocity
    tracker.mark(keys * np.float32(1.0001))
    assert (tracker.reach, tracker.velocity) == before, "evaluation moves nothing"
