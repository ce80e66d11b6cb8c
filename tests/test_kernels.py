"""Kernels are compiled once for a machine: what was built is found again, and nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from supermask.kernels import build as native

pytestmark = pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="needs a C++ compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(native.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    native.build.cache_clear()
    yield tmp_path / "supermask" / "kernels"
    native.build.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that a compiler was started for."""
    run, names = subprocess.run, []

    def noted(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        names.extend(Path(word).stem for word in command if word.endswith(".cpp"))
        return run(command, **more)

    monkeypatch.setattr(native.subprocess, "run", noted)
    return names


def build_again() -> None:
    native.build.cache_clear()
    assert native.build("noise") is not None


def test_what_was_built_is_found_again_and_damage_is_seen(cache, compiled):
    build_again()
    (kept,) = cache.iterdir()
    build_again()
    assert compiled == ["noise"] and cache.stat().st_mode & 0o777 == 0o700
    whole = kept.read_bytes()
    # A new file: the old one is mapped into this process.
    kept.unlink()
    kept.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    build_again()
    assert compiled == ["noise"] * 2
    assert kept.read_bytes() == whole, "the same compiler gives the same file"
    build_again()
    assert compiled == ["noise"] * 2


def test_a_library_that_may_not_be_loaded_where_it_lies_is_built_elsewhere(cache, compiled, monkeypatch):
    """As in a home folder on a file system from which nothing is run."""
    build_again()
    load = native.ctypes.CDLL

    def refused(path: str):
        if Path(path).parent == cache:
            raise OSError("failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(native.ctypes, "CDLL", refused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_again()
    assert compiled == ["noise"] * 2


def test_other_flags_compilers_and_processors_have_files_of_their_own(cache, compiled, monkeypatch, tmp_path):
    build_again()
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DOTHER"))
    build_again()
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("c++") or shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    build_again()
    assert len(compiled) == len(list(cache.iterdir())) == 3
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, *a: "flags\t: avx9" if p.name == "cpuinfo" else read(p, *a))
    build_again()
    assert len(compiled) == len(list(cache.iterdir())) == 4
    monkeypatch.setattr(Path, "read_text", lambda p, *a: "" if p.name == "cpuinfo" else read(p, *a))
    build_again()
    assert (len(compiled), len(list(cache.iterdir()))) == (5, 4), "an unknown processor keeps nothing"


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_write_to_is_neither_read_nor_written(mode, cache, compiled):
    build_again()
    cache.chmod(mode)
    build_again()
    assert compiled == ["noise"] * 2 and len(list(cache.iterdir())) == 1


def test_without_a_folder_it_is_built_each_time(cache, compiled, monkeypatch):
    cache.parent.write_text("a file where the folder would be")
    build_again()
    build_again()
    assert compiled == ["noise"] * 2
    cache.parent.unlink()
    monkeypatch.setattr(native.os, "replace", lambda *_: os.stat("/nowhere"))
    build_again()
    assert compiled == ["noise"] * 3 and not list(cache.iterdir()), "nothing half-written stays"
