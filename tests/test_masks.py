from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import perceptron
from ticket_bytes import full_ticket

import supermask
from supermask import Masks

pytestmark = pytest.mark.quick


def masks(*bits: str) -> Masks:
    return Masks({f"t{i}": torch.tensor([c == "1" for c in text]) for i, text in enumerate(bits)})


def test_density_counts_and_report():
    m = masks("1100", "10")
    assert (m.size, m.kept, m.density) == (6, 3, 0.5)
    assert m.densities == {"t0": 0.5, "t1": 0.5}
    assert [tuple(row) for row in m.report()] == [("t0", (4,), 2, 4, 0.5), ("t1", (2,), 1, 2, 0.5)]
    assert "3 of 6 weights kept" in repr(m)


def test_set_operations_overlap_and_change():
    a, b = masks("1100", "10"), masks("0110", "10")
    assert a & b == masks("0100", "10")
    assert a | b == masks("1110", "10")
    assert ~a == masks("0011", "01")
    assert a.overlap(b) == 2 / 4
    assert a.changed(b) == 2 / 6
    assert (a & b).within(a)
    assert not a.within(b)
    assert masks("0").overlap(masks("0")) == 1.0
    assert a != b
    assert a == masks("1100", "10")


def test_what_is_no_mask_is_refused_all_at_once():
    with pytest.raises(ValueError, match=r"a \(float32 tensor\), b \(list\)"):
        Masks({"a": torch.ones(2), "b": [True], "c": torch.ones(2, dtype=torch.bool)})


def test_masks_over_other_tensors_are_refused():
    with pytest.raises(ValueError, match=r"no parameter 't1'.*t0 has shape \[3\], its mask \[4\]|t0.*t1"):
        masks("1100", "10") & masks("110")


def test_check_names_every_misfit():
    model = perceptron()
    wrong = Masks({"0.weight": torch.ones(9, 11, dtype=torch.bool), "4.wieght": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"0.weight has shape \[9, 12\], its mask \[9, 11\].*did you mean '4.weight'"):
        wrong.check(model)


# --- against loops over Python lists

bits = st.lists(st.booleans(), min_size=1, max_size=30)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, list[bool]], dict[str, list[bool]], set[str]]:
    """Two masks over the same tensors, and which of these no density counts."""
    first = draw(st.dictionaries(st.sampled_from("abcd"), bits, min_size=1))
    second = {name: draw(st.lists(st.booleans(), min_size=len(m), max_size=len(m))) for name, m in first.items()}
    return first, second, set(draw(st.lists(st.sampled_from("abcd"))))


def masks_of(lists: dict[str, list[bool]], uncounted: set[str]) -> Masks:
    return Masks({name: torch.tensor(mask) for name, mask in lists.items()}, uncounted)


@given(pairs())
@settings(max_examples=100, deadline=None)
def test_every_operation_equals_the_loop(drawn):
    first, second, uncounted = drawn
    a, b = masks_of(first, uncounted), masks_of(second, uncounted)
    assert a.uncounted == uncounted & set(first)
    both = [(x, y) for name in first if name not in uncounted for x, y in zip(first[name], second[name], strict=True)]
    everywhere = [(x, y) for name in first for x, y in zip(first[name], second[name], strict=True)]
    assert a.size == len(both)
    assert a.kept == sum(x for x, _ in both)
    assert a.density == (a.kept / a.size if both else 0)
    either = sum(x or y for x, y in both)
    assert a.overlap(b) == (sum(x and y for x, y in both) / either if either else 1.0)
    assert a.changed(b) == (sum(x != y for x, y in both) / len(both) if both else 0)
    assert a.within(b) == all(y or not x for x, y in everywhere), "biases of dropped channels too"
    assert set(a.counted()) == set(first) - uncounted == set(a.densities) == {row.name for row in a.report()}
    for found, rule in [(a & b, lambda x, y: x and y), (a | b, lambda x, y: x or y), (~a, lambda x, y: not x)]:
        expected = {name: [rule(x, y) for x, y in zip(first[name], second[name], strict=True)] for name in first}
        assert found == masks_of(expected, uncounted)
        assert found.uncounted == a.uncounted


def channels() -> tuple[torch.nn.Module, Masks]:
    model = perceptron()
    return model, supermask.prune(model, 0.5, granularity="filter", example_input=torch.randn(1, 12))


def test_masks_of_channels_count_weights_only():
    model, found = channels()
    assert found.uncounted == {"0.bias", "2.bias"}
    assert found.size == 108 + 63 + 21
    assert set(found.kept_per_tensor) == {"0.weight", "2.weight", "4.weight"}
    assert (~found).density == pytest.approx(1 - found.density)
    assert found.to("cpu").uncounted == found.uncounted
    found.check(model)
    with pytest.raises(ValueError, match="not over the same tensors: there is no parameter '0.bias'"):
        found.within(found.counted())


@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_shuffled_masks_keep_as_many_elsewhere(seed, density):
    original = supermask.prune(perceptron(), density)
    moved = original.shuffled(seed)
    assert moved.kept_per_tensor == original.kept_per_tensor
    assert {name: mask.shape for name, mask in moved.items()} == {name: mask.shape for name, mask in original.items()}
    assert moved == original.shuffled(seed)
    if 0.2 < density < 0.8:
        assert moved != original
        assert moved != original.shuffled(seed + 1)


def test_a_shuffle_depends_on_seed_and_name_and_leaves_what_is_not_counted():
    _, found = channels()
    moved = found.shuffled(3)
    assert moved.uncounted == found.uncounted
    for name in found:
        assert torch.equal(moved[name], found[name]) is (name in found.uncounted or bool(found[name].all()))
    one = {name: torch.arange(20) < 7 for name in ("x", "y")}
    both, alone = Masks(one).shuffled(3), Masks({"x": one["x"]}).shuffled(3)
    assert torch.equal(both["x"], alone["x"]), "whatever else there is"
    assert not torch.equal(both["x"], both["y"])
    other = Masks({"x": torch.arange(20) >= 13}).shuffled(3)
    assert int((other["x"] & alone["x"]).sum()) == 0, "the same places go to the same places"


def test_a_shuffle_is_fair():
    mask = Masks({"w": torch.arange(40).reshape(8, 5) < 10})
    times = sum(mask.shuffled(seed)["w"].int() for seed in range(2000)).numpy() / 2000
    assert np.abs(times - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_difference_and_symmetric_difference():
    a = Masks({"w": torch.tensor([True, True, False, False]), "b": torch.tensor([True])}, ["b"])
    b = Masks({"w": torch.tensor([True, False, True, False]), "b": torch.tensor([False])})
    assert (a - b)["w"].tolist() == [False, True, False, False]
    assert (a ^ b)["w"].tolist() == [False, True, True, False]
    assert a ^ b == (a - b) | (b - a)
    # What one of the two does not count, neither does what is made of both.
    for made in (a & b, b & a, a | b, b | a, a - b, b - a, a ^ b):
        assert made.uncounted == {"b"}


def test_masks_under_other_names():
    masks = Masks({"a.w": torch.ones(2, dtype=torch.bool), "a.b": torch.ones(1, dtype=torch.bool)}, ["a.b"])
    assert set(masks.renamed({"a.": "net.body."})) == {"net.body.w", "net.body.b"}
    assert masks.renamed({"a.": "net."}).uncounted == {"net.b"}
    assert set(masks.renamed({"": "m.", "a.w": "head"})) == {"head", "m.a.b"}
    assert set(masks.renamed({"a.w": None})) == {"a.b"}
    assert set(masks.renamed(lambda name: name.upper())) == {"A.W", "A.B"}
    assert masks.renamed(None) == masks
    # Without its dot a prefix is a whole name.
    assert masks.renamed({"a": "c"}) == masks
    with pytest.raises(ValueError, match="'a.w' and 'a.b' both become 'x'"):
        masks.renamed(lambda name: "x")


def test_masks_of_a_file_are_masks_in_every_way(tmp_path):
    given = full_ticket()
    supermask.save(given, tmp_path / "t")
    masks, again = given.masks, supermask.load(tmp_path / "t").masks
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again)), again.to("cpu"), ~~again, again):
        assert copied == masks
        assert masks == copied
        assert copied.report() == masks.report()
        assert copied.uncounted == masks.uncounted
        assert (copied.size, copied.kept, copied.shapes) == (masks.size, masks.kept, masks.shapes)
    assert "nothing" not in again
    with pytest.raises(KeyError):
        again["nothing"]
