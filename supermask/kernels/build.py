"""Kernels in C++, built by the machine's compiler when they are first wanted: `cut.cpp`, `csr.cpp` and `noise.cpp`.

What is built stays in the user's cache, so that the next process does not wait for the compiler. Without a compiler
everything does without them: what is found is the same, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

COMPILERS = ("c++", "g++", "clang++")
# For this processor alone.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")

_POINTER, _COUNT, _NUMBER, _WORD = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_uint64
# The functions of each source by the type of their numbers, what they take and what they return.
_FUNCTIONS: dict[str, tuple[dict[torch.dtype, str], list[Any], Any]] = {
    "cut": (
        {torch.float32: "find_cut_of_floats", torch.float64: "find_cut_of_doubles"},
        [_POINTER, _POINTER, _COUNT, _COUNT, _NUMBER, _NUMBER, _COUNT, *[_POINTER] * 4],
        _COUNT,
    ),
    "csr": (
        {torch.float32: "multiply_rows_of_floats", torch.float64: "multiply_rows_of_doubles"},
        [*[_POINTER] * 4, _COUNT, _COUNT, _POINTER, *[_COUNT] * 5, _POINTER, _COUNT],
        None,
    ),
    "noise": ({torch.float32: "draw_uniform_floats"}, [*[_WORD] * 4, _COUNT, _POINTER, _COUNT], None),
}


@functools.cache
def build(name: str) -> dict[torch.dtype, Any] | None:
    """The functions of `cut.cpp`, `csr.cpp` or `noise.cpp` by the type of their numbers; None without a C++ compiler.

    The compiler is that of the environment variable CXX, or the first of COMPILERS. One that is there and fails is
    reported by a warning.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "", *COMPILERS))), None)
    if compiler is None:
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        library = _load_or_build(compiler, source)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        warnings.warn(f"{compiler} could not build {source.name}, slower ways are taken:\n{said}", stacklevel=2)
        return None
    names, takes, returns = _FUNCTIONS[name]
    functions = {dtype: library[function] for dtype, function in names.items()}
    for function in functions.values():
        function.argtypes, function.restype = takes, returns
    return functions


def _load_or_build(compiler: str, source: Path) -> ctypes.CDLL:
    """The library of a source, from the user's cache if it was built before for this processor."""
    key = _key(compiler, source)
    cache = _cache() if key else None
    for there in cache.glob(f"{source.stem}-{key}-*.so") if cache else ():
        # One that was damaged, is gone by now, or lies where nothing may be run, is built anew elsewhere.
        with contextlib.suppress(OSError):
            if there.stem.endswith(_hash(there.read_bytes())):
                return ctypes.CDLL(str(there))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        built = Path(folder, f"{source.stem}.so")
        command = [compiler, *FLAGS, str(source), "-o", str(built)]
        # Not every compiler has OpenMP: a kernel without it runs on one thread.
        for flags in (["-fopenmp"], []):
            done = subprocess.run([*command, *flags], capture_output=True, text=True)
            if done.returncode == 0:
                break
        done.check_returncode()
        if cache:
            # Where it cannot be kept, as on a full disk, the next process builds it again.
            with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=cache) as beside:
                copy = shutil.copy(built, beside)
                os.replace(copy, cache / f"{source.stem}-{key}-{_hash(built.read_bytes())}.so")
        return ctypes.CDLL(str(built))


def _cache() -> Path | None:
    """The folder of what was built, which only its owner may write to, because what lies in it is run."""
    folder = Path(platformdirs.user_cache_dir("supermask"), "kernels")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return None
    return folder if found.st_uid == os.getuid() and not found.st_mode & 0o022 else None


def _key(compiler: str, source: Path) -> str:
    """What a library depends on: its source, the compiler and the processor; empty where that one is not known."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    processor = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", told.partition("\n\n")[0], re.MULTILINE)
    real = Path(compiler).resolve()
    parts = [source.read_text(), real, real.stat().st_mtime_ns, FLAGS, platform.platform(), *sorted(processor)]
    return _hash("\0".join(map(str, parts)).encode()) if processor else ""


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


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
    functions = build("cut")
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


def can_multiply_rows(values: Tensor, bias: Tensor) -> bool:
    """Whether `multiply_rows` takes these: of one type that the kernel knows, on the CPU, and the kernel is built."""
    alike = values.dtype == bias.dtype and values.device.type == bias.device.type == "cpu"
    return alike and values.dtype in _FUNCTIONS["csr"][0] and build("csr") is not None


def multiply_rows(rows: Tensor, columns: Tensor, values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """A matrix in compressed sparse rows times each column of `x`, plus a bias for each row.

    Args:
        rows: where each row begins among `columns` and `values`, and where the last one ends, int32 [outputs + 1].
        columns: of each value, int32 [kept].
        values: row after row, float32 or float64 [kept].
        bias: of each row, [outputs]; `can_multiply_rows` of both.
        x: [inputs, samples] or [groups, inputs, samples], of the same type, with any strides; not checked.

    Returns:
        [outputs, samples] or [groups, outputs, samples], contiguous.
    """
    functions = build("csr")
    assert functions is not None, "can_multiply_rows was not asked"
    n_rows, (n_columns, samples) = bias.shape[0], x.shape[-2:]
    grouped = x.dim() == 3
    y = x.new_empty((x.shape[0], n_rows, samples) if grouped else (n_rows, samples))
    functions[x.dtype](
        rows.data_ptr(), columns.data_ptr(), values.data_ptr(), bias.data_ptr(), n_rows, n_columns, x.data_ptr(),
        x.shape[0] if grouped else 1, x.stride(0) if grouped else 0, *x.stride()[-2:], samples, y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def draw_uniform_floats(count: int, key: tuple[int, int], step: int, stream: int) -> Tensor | None:
    """The numbers of `random_numbers.uniform_floats`, on torch's threads; None where `build` gave nothing."""
    functions = build("noise")
    if functions is None:
        return None
    values = torch.empty(count, dtype=torch.float32, device="cpu")
    functions[torch.float32](*key, step, stream, count, values.data_ptr(), torch.get_num_threads())
    return values
