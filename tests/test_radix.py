"""Selection on a GPU, without one: Triton's kernels interpreted and compiled, and what takes their place."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import combine
from test_selection import tied_floats
from torch import Tensor

from supermask.selection.top_k import best_of_each, kth_by_topk, kth_largest

pytest.importorskip("triton")
from supermask.kernels import philox, radix
from supermask.masks.random_numbers import key_of

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **environment}
    # A test before this one may have left the folder of the project.
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernels_interpreted(which):
    told = run("-m", "pytest", "-q", "-n0", "-m", which, str(ROOT / "tests" / "interpreted.py"), TRITON_INTERPRET="1")
    assert told.returncode == 0, told.stdout[-5000:]


COMPILE = """
import inspect, triton
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
from supermask.kernels import radix, triton_philox as philox, triton_radix as kernels

name = "constexprs" if "constexprs" in inspect.signature(ASTSource).parameters else "constants"

def compile_for(kernel, types, constants):
    given = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature = {arg: types.get(arg, "constexpr") for arg in kernel.arg_names}
    for arch in (80, 90):
        source = ASTSource(fn=kernel, signature=signature, **{name: given})
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 8})
        assert f".target sm_{arch}" in made.asm["ptx"] and made.metadata.shared <= 48 * 1024, kernel

tables = dict.fromkeys(["blocks", "layers", "groups", "prefix", "bins", "odd", "counts", "missing", "equals",
                        "thresholds", "last", "starts"], "*i32") | dict.fromkeys(["addresses", "weights"], "*i64")
constants = dict(BLOCK=radix.BLOCK, BINS=256, AT_ONCE=1024)
kinds = dict.fromkeys(["size", "key0", "key1", "step", "stream"], "i64") | {"values": "*fp32"}
compile_for(philox.draw_uniform, kinds, {"BLOCK": 512})
for bits, infinity, shifts in ((31, 0x7F800000, (23, 15, 0)), (15, 0x7F80, (7, 0))):
    cases = [(kernels.count_bins, "", dict(SHIFT=s, WIDTH=8, FIRST=s == shifts[0], INFINITY=infinity)) for s in shifts]
    cases += [(kernels.pick_bin, "", dict(WIDTH=8, FIRST=first)) for first in (True, False)]
    for permuted in (True, False):
        cases += [(kernels.count_equals, "", dict(PERMUTED=permuted))]
        cases += [(kernels.find_last, "", dict(PERMUTED=permuted, LAYERS=layers)) for layers in (1, 32)]
        cases += [(kernels.keep, out, dict(PERMUTED=permuted, WEIGHT=weight))
                  for out, weight in (("*i1", 0), ("*i32", 32), ("*i16", 16))]
    cases += [(kernels.clear, "", dict(WIDTH=32 if bits == 31 else 16))]
    for kernel, out, own in cases:
        addresses = {"bits": "*i64"} if kernel is kernels.clear else {}
        compile_for(kernel, tables | {"out": out} | addresses, {**constants, "BITS": bits, **own})
print("compiled")
"""


def test_the_kernels_compile_for_gpus(tmp_path):
    told = run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert told.stdout == "compiled\n", told.stderr


# --- what plain PyTorch does on an accelerator


@given(st.lists(tied_floats, min_size=1, max_size=40), st.data())
@settings(max_examples=100, deadline=None)
def test_the_kth_of_a_gpu_is_the_kth(values, data):
    keys = torch.tensor(values)
    k = data.draw(st.integers(1, len(values)))
    assert kth_by_topk(keys, k) == kth_largest(keys, k)


@combine(group=[2, 4, 8, 16], kept=[1, 2, 7])
def test_groups_are_the_same_on_an_accelerator(group, kept):
    if kept >= group:
        return
    torch.manual_seed(0)
    keys = torch.randn(300, group).round(decimals=1)
    wanted = best_of_each(keys, kept)
    with mock.patch.object(Tensor, "is_cpu", False):
        assert torch.equal(best_of_each(keys, kept), wanted)


def test_what_is_kept_on_a_gpu_lies_in_memory_of_its_own(monkeypatch):
    """What is made in a thread that warms up a CUDA graph lies in the graph's memory, which is written over."""
    done: list[str] = []

    @contextlib.contextmanager
    def within(what):
        done.append(f"within {what}")
        yield

    sent = Tensor.to
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "a stream")
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "device", within)
    monkeypatch.setattr(
        Tensor, "to", lambda self, device: done.append(threading.current_thread().name) or sent(self, "cpu")
    )
    assert radix._sent([[1, 2], [3, 4]], torch.device("cuda", 0)).tolist() == [[1, 2], [3, 4]]
    assert done[:2] == ["within cuda:0", "within a stream"] and done[2].startswith("supermask-tables")


def test_kernels_are_launched_on_the_device_of_what_they_are_given(monkeypatch):
    seen = []

    @contextlib.contextmanager
    def device_of(tensor):
        seen.append(tensor)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(radix, "kernels", mock.MagicMock())
    monkeypatch.setattr(philox, "kernels", mock.MagicMock())
    scores = [torch.ones(4), torch.ones(5)]
    radix.mark(scores, [2, 2], False)
    radix.cut(scores, [2, 2], False)
    radix.clear(scores, [torch.ones(4, dtype=torch.int32), torch.ones(5, dtype=torch.int32)])
    drawn = philox.draw_uniform(3, key_of(0, "a"), 0, 0, torch.device("cpu"))
    assert [tensor is scores[0] for tensor in seen[:3]] == [True] * 3 and seen[3] is drawn
