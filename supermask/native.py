"""`cut.cpp`, built where torch.compile builds its own kernels: the search of `tracking` without NumPy's many calls.

Only passes that are compiled use it, and without a C++ compiler they do without: what it finds is the same.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cut.cpp")
COMPILERS = ("c++", "g++", "clang++")
# For this processor alone: what is built lasts as long as the process.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")


@functools.cache
def build() -> dict[torch.dtype, Any] | None:
    """The functions of `cut.cpp` by the type of the keys; None, where the machine has no C++ compiler.

    The compiler is that of the environment variable CXX, or the first of COMPILERS. One that is there and fails is
    reported by a warning.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "", *COMPILERS))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        built = Path(folder, "cut.so")
        try:
            subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(built)], capture_output=True, text=True, check=True
            )
            library = ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            warnings.warn(
                f"{compiler} could not build {SOURCE.name}, compiled passes choose masks by a slower way:\n{said}",
                stacklevel=2,
            )
            return None
    functions = {torch.float32: library.find_cut_of_floats, torch.float64: library.find_cut_of_doubles}
    for function in functions.values():
        function.restype = ctypes.c_int64
        function.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_double, ctypes.c_double,
            ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
    return functions


def find_cut(scores: Sequence[Tensor], k: int, band: tuple[float, float], room: int) -> tuple[float, int] | None:
    """The k-th largest magnitude of all scores together, and the position of the last one equal to it that is kept.

    Args:
        scores: tensors on the CPU, ranked together; the position counts through all of them in row-major order.
        k: how many are kept, 0 < k < number of scores.
        band: where the k-th largest is expected, the ends included.
        room: how many magnitudes in the band there may be.

    Returns:
        None if the k-th largest is not in the band, there are more than `room` in it, or `build` gave nothing.
    """
    functions = build()
    if functions is None:
        return None
    kind = torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32
    flat = [score.detach().to(kind).contiguous() for score in scores]
    pointers = (ctypes.c_void_p * len(flat))(*[part.data_ptr() for part in flat])
    sizes = (ctypes.c_int64 * len(flat))(*[part.numel() for part in flat])
    # Positions, magnitudes, and the magnitudes again to be put in order; pages that are never written cost nothing.
    memory = torch.empty(3, room, dtype=torch.int64, device="cpu")
    start, step = memory.data_ptr(), room * memory.itemsize
    threshold = ctypes.c_double()
    last: int = functions[kind](
        pointers, sizes, len(flat), k, *band, room, start, start + step, start + 2 * step, ctypes.byref(threshold)
    )
    return None if last < 0 else (threshold.value, last)
