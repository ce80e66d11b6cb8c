from __future__ import annotations

import pytest
import torch
from networks import perceptron

from supermask import Masks


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
