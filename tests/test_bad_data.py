"""Bad data in memory and in files: from every source, told before anything is trained, with the split and the sample."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ticket_search import Interrupted, resume, search
from ticket_search.contract.errors import RequestError, RunError
from ticket_search.data import checks, cifar, digits, idx, published, svhn
from ticket_search.data.arrays import Arrays
from ticket_search.data.dataset import Data, as_arrays, from_arrays
from ticket_search.data.sources import read_arrays, read_samples
from ticket_search.running.request import check_request
from ticket_search.runs import states
from ticket_search.runs.experiment import load_data

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(80, 6)).astype(np.float32), np.arange(80) % 4
FLOATS = DRAW.normal(size=(80, 2)).astype(np.float32)
TOKENS = DRAW.integers(0, 20, (80, 5))
FLAGS = {"epochs": 2, "threads": 1, "batch_size": 16, "progress": False}


def load(data: Any, **flags) -> Data:
    found = load_data(data, check_request("dense", "lenet-300-100", data, flags).config)
    assert isinstance(found, Data)
    return found


# Every form in which a person gives data, of arrays x and y, with the name that sentences have for the part.


class Samples(Dataset[Any]):
    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


def of_a_function(x: np.ndarray, y: np.ndarray) -> str:
    sys.modules["bad_data_of_mine"].load = lambda: (x, y)
    return "bad_data_of_mine:load"


def whole(x: np.ndarray, y: np.ndarray) -> Arrays:
    return Arrays(X, Y if y.dtype.kind == "i" else FLOATS, x, y, classes=4, validation=8)


FORMS: dict[str, tuple[Callable[..., Any], str]] = {
    "pair": (lambda x, y: (x, y), "data"),
    "tensors": (lambda x, y: (torch.from_numpy(x), torch.from_numpy(y)), "data"),
    "parts": (lambda x, y: {"train": (X, Y if y.dtype.kind == "i" else FLOATS), "test": (x, y)}, "test"),
    "dictionary": (lambda x, y: {"inputs": x, "labels": y}, "data"),
    "Dataset": (Samples, "data"),
    "TensorDataset": (lambda x, y: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), "data"),
    "DataLoader": (lambda x, y: DataLoader(Samples(x, y), batch_size=7), "data"),
    "function": (of_a_function, "data"),
    "Arrays": (whole, "test"),
}


def with_value(array: np.ndarray, value: float, *rows: int) -> np.ndarray:
    changed = array.copy()
    changed.reshape(len(array), -1)[list(rows), 0] = value
    return changed


FAULTS: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "NaN": (
        with_value(X, np.nan, 17, 30),
        Y,
        "x.* has 2 values that are NaN or infinite, at sample 17, the first of 2",
    ),
    "infinite": (with_value(X, -np.inf, 79), Y, "x.* has 1 values that are NaN or infinite, at sample 79$"),
    "NaN targets": (X, with_value(FLOATS, np.nan, 5, 6, 7), "y has 3 values .*, at sample 5, the first of 3"),
    "negative": (
        X,
        with_value(Y, -3, 17, 21),
        "y has the class number -3, expected numbers from 0, .*: at sample 17, the",
    ),
    "ignored": (X, with_value(Y, -100, 40), "y has the class number -100, expected numbers from 0, .*: at sample 40$"),
}


@pytest.fixture
def module(monkeypatch, tmp_path) -> None:
    """A module of a person's own, in the folder that is current."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "bad_data_of_mine.py").write_text("")
    sys.path.insert(0, str(tmp_path))
    import bad_data_of_mine  # noqa: F401

    yield
    del sys.modules["bad_data_of_mine"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_wrong_is_told_with_the_sample_from_every_source(form, fault, module):
    (make, part), (x, y, told) = FORMS[form], FAULTS[fault]
    with pytest.raises(RequestError, match=f"^{part}: {told}"):
        load(make(x, y))


def test_data_that_are_split_already_are_checked_too():
    data = from_arrays((X, Y), 0)
    wrong = data.validation_x.clone()
    wrong[3] = torch.nan
    with pytest.raises(
        RequestError, match="^arrays-.*: validation: x has 6 values that are NaN or infinite, at sample 3$"
    ):
        load(replace(data, validation_x=wrong))
    with pytest.raises(
        RequestError, match="test: y has the class number 4, expected numbers from 0 to 3, .*: at sample 2"
    ):
        load(replace(data, test_y=data.test_y.clone().index_fill_(0, torch.tensor([2]), 4)))
    with pytest.raises(RequestError, match="validation has no samples$"):
        load(replace(data, validation_x=wrong[:0], validation_y=data.validation_y[:0]))


def test_data_sets_of_ours_are_checked_too(monkeypatch):
    given = Arrays(X, Y, with_value(X, np.nan, 9), with_value(Y, 10, 11), classes=10, validation=10)
    monkeypatch.setattr(digits, "read", lambda *_: given)
    with pytest.raises(RequestError) as caught:
        read_arrays("digits")
    assert [problem.partition(" values")[0].partition(", exp")[0] for problem in caught.value.problems] == [
        "digits: test: x has 1",
        "digits: test: y has the class number 10",
    ]
    monkeypatch.setattr(digits, "read", lambda *_: replace(given, validation=80))
    with pytest.raises(RequestError, match="digits has 80 training samples, of which 80 would be held out"):
        read_arrays("digits")


def test_class_numbers_beyond_those_that_are_declared():
    given = Arrays(X, Y, X, with_value(Y, 7, 13), classes=4, validation=8)
    with pytest.raises(RequestError, match="classes=4 and the class number 7, .*: test, at sample 13"):
        as_arrays(given)
    assert as_arrays(replace(given, test_y=Y)).classes == 4


def test_floats_as_class_numbers():
    halves = with_value(Y.astype(np.float32), 1.5, 33, 40)
    with pytest.raises(
        RequestError, match=r"^data: y is 1.5, where --loss .* class numbers, at sample 33, the first of 2"
    ):
        load((X, halves), loss="cross-entropy")
    assert load((X, halves), loss="mse").train_y.dtype == torch.float32


def test_targets_of_which_some_do_not_count():
    y = with_value(TOKENS, -100, 3)
    assert (load((TOKENS, y)).train_y == -100).sum() <= 1
    with pytest.raises(RequestError, match=r"class number -7, expected numbers from 0 \(-100 where .*: at sample 8$"):
        load((TOKENS, with_value(y, -7, 8)))


def slow_hash_free_copies(data: Data, part: str) -> int:
    known = {row.tobytes() for row in data.train_x.numpy()}
    return sum(row.tobytes() in known for row in getattr(data, f"{part}_x").numpy())


@pytest.mark.parametrize("kind", ["floats", "tokens", "bits", "pixels", "odd"])
def test_copies_between_splits_are_told_above_one_percent(kind, monkeypatch):
    draw, count = np.random.default_rng(1), 1000
    x: np.ndarray = {
        "floats": draw.normal(size=(count, 6)).astype(np.float32),
        "tokens": draw.integers(0, 3, (count, 8)),
        # Numbers whose lower bits are all zero, every other one constant.
        "bits": np.kron(draw.integers(0, 2, (count, 12)), [0, 1]).astype(np.float32),
        "pixels": draw.integers(0, 256, (count, 1, 3, 3)).astype(np.uint8),
        "odd": draw.integers(0, 2, (count, 9)).astype(np.float32),
    }[kind]
    test = draw.normal(size=(200, *x.shape[1:])).astype(x.dtype) if kind == "floats" else x[:200].copy()
    if kind == "floats":
        test[:2] = x[:2]
    monkeypatch.setattr(checks, "_WORDS", 50)
    data = from_arrays({"train": (x, np.arange(count) % 4), "test": (test, np.arange(200) % 4)}, 0)
    told = list(checks.remarks(data.name, data.parts, data.classes))
    shared = {part: slow_hash_free_copies(data, part) for part in ("validation", "test")}
    sizes = {"validation": 100, "test": 200}
    assert told == [
        f"{data.name}: {shared[part]:,} of {sizes[part]} samples of {part} are among those of training too: what is "
        "measured on them tells nothing of samples that are new"
        for part in shared
        if shared[part] > 0.01 * sizes[part]
    ]
    assert bool(told) == (kind != "floats"), "one in a hundred is none"


def test_what_nothing_can_be_learned_from_is_told():
    data = from_arrays({"train": (X, Y), "test": (X + 1, Y)}, 0)
    assert list(checks.remarks(data.name, data.parts, data.classes)) == []
    constant = replace(data, test_x=torch.ones(80, 6))
    assert list(checks.remarks("mine", constant.parts, 4)) == [
        "mine: all samples are alike in test: nothing tells their targets apart"
    ]
    lacking = list(checks.remarks("mine", data.parts, 12))
    assert lacking == ["mine: no training sample is of the classes 4, 5, 6, 7, 8 and 3 more, of 12"]
    mask = replace(data, train_x={"x": data.train_x, "mask": torch.ones(72, 6)})
    assert next(checks.remarks("mine", {**mask.parts, "validation": mask.parts["train"]}, 4)).startswith("mine: 72 of")
    with pytest.warns(UserWarning, match="no training sample is of the classes 2, of 3"):
        load({"train": (X, np.arange(80) % 2), "test": (X + 1, np.arange(80) % 3)})


class Reader(nn.Module):
    """An embedding of so many tokens, and so many outputs for each."""

    def __init__(self, tokens: int, outputs: int) -> None:
        super().__init__()
        self.rows, self.out = nn.Embedding(tokens, 6), nn.Linear(6, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rows(x))


@pytest.mark.parametrize(
    ("x", "y", "outputs", "told"),
    [
        (
            with_value(TOKENS, 20, 30),
            TOKENS,
            20,
            r"network .* sample \d+ of (train|test), whose tokens are \d+ to 20: Ind",
        ),
        (
            with_value(TOKENS, -1, 30),
            TOKENS,
            20,
            r"network .* sample \d+ of (train|test), whose tokens are -1 to \d+: Ind",
        ),
        (
            TOKENS,
            with_value(TOKENS, 20, 30),
            20,
            r"loss .* sample \d+ of (train|test), whose targets are \d+ to 20: Ind",
        ),
    ],
)
def test_tokens_and_classes_that_a_network_has_no_row_for(x, y, outputs, told, tmp_path):
    with pytest.raises(RequestError, match=f"^the {told}"):
        search("dense", lambda: Reader(20, outputs), (x, y), runs=tmp_path, **FLAGS)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_columns_have_numbers_of_their_own(tmp_path):
    """The largest number of each of a few columns is looked at, not only the largest of all."""

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Embedding(50, 3), nn.Embedding(5, 3), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.first(x[:, 0]) + self.second(x[:, 1]))

    x = np.stack([np.arange(80) % 50, np.arange(80) % 5], 1)
    x[2, 1] = 5
    with pytest.raises(RequestError, match="does not take sample .* of .*, whose tokens are 2 to 5"):
        search("dense", Columns, (x, Y), runs=tmp_path, **FLAGS)


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Any:
        if i == 13:
            raise OSError("image file\n is truncated")
        return np.ones(3) * i, i % 2


class Lazy(dict[str, Any]):
    def __getitem__(self, key: str) -> Any:
        return np.frombuffer(b"123", np.int64)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Broken(), "data: sample 13 cannot be read: OSError: image file is truncated"),
        (DataLoader(Broken(), batch_size=5), "data cannot be read: OSError: image file is truncated"),
        (
            DataLoader(Broken(), batch_size=5, num_workers=1),
            "data cannot be read: OSError: Caught OSError in DataLoader",
        ),
        (
            (torch.zeros(20, 3).to_sparse(), torch.arange(20) % 2),
            "data cannot be read: TypeError: can't convert Sparse",
        ),
        (Lazy(x=1, y=2), "data cannot be read: ValueError: buffer size must be a multiple of element size"),
    ],
)
def test_what_fails_while_it_is_read_is_told_in_a_line(given, told):
    with pytest.raises(RequestError) as caught:
        load(given)
    assert caught.value.problems[0].startswith(told) and "\n" not in str(caught.value)


def test_bfloat16_is_read_as_floats():
    rounded = torch.from_numpy(X).bfloat16()
    assert torch.equal(load((rounded, Y)).train_x, load((rounded.float(), Y)).train_x)


def test_truncated_archives_of_a_function(module, tmp_path, ticket):
    np.savez(tmp_path / "all.npz", x=X, y=Y)
    np.save(tmp_path / "x.npy", X)
    reads = {"all.npz": "numpy.load(PATH)", "x.npy": "(numpy.load(PATH), numpy.zeros(80, int))"}
    for name, code in reads.items():
        path = tmp_path / name
        content = path.read_bytes()
        for size in (0, 10, len(content) // 2, len(content) - 30):
            path.write_bytes(content[:size])
            text = f"import numpy\ndef load():\n    return {code.replace('PATH', repr(str(path)))}\n"
            exec(text, sys.modules["bad_data_of_mine"].__dict__)
            answer = ticket("search", "--method", "dense", "--data", "bad_data_of_mine:load")
            assert answer.code == 2 and "Traceback" not in answer.err, (name, size)
            assert answer.err.splitlines()[-1].startswith("error: bad_data_of_mine:load raised "), answer.err


# Files of published data sets.


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def write_digits(root: Path, name: str = "kmnist", count: int = 60) -> Path:
    """A data set in the form of MNIST, of random images."""
    for number, file in enumerate(idx._NAMES):
        size = count if "train" in file else 20
        draw = np.random.default_rng(number)
        shape = (size, 6, 6) if "images" in file else (size,)
        write_idx(root / name / file, draw.integers(0, 256 if "images" in file else 10, shape).astype(np.uint8))
    return root / name


def test_the_digests_are_those_of_torchvision():
    sets = torchvision.datasets
    for name, kind in {"mnist": sets.MNIST, "fashion-mnist": sets.FashionMNIST, "kmnist": sets.KMNIST}.items():
        assert {file: published.DIGESTS[name][file][0] for file, _ in kind.resources} == dict(kind.resources)
    for name, kind in {"cifar10": sets.CIFAR10, "cifar100": sets.CIFAR100}.items():
        batches = dict(map(tuple, kind.train_list + kind.test_list))
        assert {file: digest for file, (digest,) in published.DIGESTS[name].items()} == batches
    listed = {file: digest for _, file, digest in (sets.SVHN.split_list[part] for part in ("train", "test"))}
    assert {file: digest for file, (digest,) in published.DIGESTS["svhn"].items()} == listed
    files = {**cifar._SETS, **idx._SETS, "svhn": svhn._FILES}
    for name, known in {**published.DIGESTS, **{f"{name}": sizes for name, sizes in published.SIZES.items()}}.items():
        read = {file for names in files[name].layouts.values() for file in names}
        assert {file.removesuffix(".gz") for file in known} <= read


@pytest.mark.data
def test_fashion_mnist_as_debian_has_it_is_the_published_one():
    with warnings.catch_warnings(action="error"):
        read_arrays("fashion-mnist")


def test_files_that_are_in_the_form_and_not_the_published_ones(tmp_path, monkeypatch):
    folder = write_digits(tmp_path, "mnist")
    plain = folder / idx._NAMES[1]
    content = plain.read_bytes()
    known = dict(published.DIGESTS["mnist"])
    for name in idx._NAMES:
        known[name] = (hashlib.md5((folder / name).read_bytes()).hexdigest(),)
    monkeypatch.setattr(published, "DIGESTS", {"mnist": known})
    with warnings.catch_warnings(action="error"):
        read_arrays("mnist", str(tmp_path))
        # Packed by anyone, the same.
        (folder / f"{plain.name}.gz").write_bytes(gzip.compress(content))
        plain.unlink()
        read_arrays("mnist", str(tmp_path))
    other = content[:-1] + bytes([(content[-1] + 1) % 10])
    (folder / f"{plain.name}.gz").write_bytes(gzip.compress(other))
    came, expected = hashlib.md5(other).hexdigest(), known[plain.name][0]
    with pytest.warns(UserWarning, match="published file") as told:
        read_arrays("mnist", str(tmp_path))
    assert [str(each.message) for each in told] == [
        f"{folder / plain.name}.gz is not the published file of mnist: its MD5 is {came} when unpacked, expected {expected}"
    ]
    plain.write_bytes(other)
    with pytest.warns(UserWarning, match=f"{plain.name} is not .*: its MD5 is {came}, expected {expected}$"):
        read_arrays("mnist", str(tmp_path))


def test_a_binary_batch_that_is_cut_between_two_images(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in cifar._SETS["cifar10"].layouts["cifar-10-batches-bin"]:
        (folder / name).write_bytes(bytes(3073 * 10))
    with pytest.warns(UserWarning, match="test_batch.bin is not .* cifar10: it has 30,730 bytes, expected 30,730,000$"):
        read_arrays("cifar10", str(tmp_path))


def test_a_damaged_file_of_scikit_learn(tmp_path, monkeypatch):
    path = digits._find_file()
    content = path.read_bytes()
    monkeypatch.setattr(digits, "_find_file", lambda: tmp_path / "digits.csv.gz")
    lines = gzip.decompress(content).splitlines(keepends=True)
    for damaged in (b"", content[:5000], content[:-9], gzip.compress(b"".join(lines[:90])), gzip.compress(b"a,b\n")):
        (tmp_path / "digits.csv.gz").write_bytes(damaged)
        with pytest.raises(
            RequestError, match="digits.csv.gz of scikit-learn is damaged: .* expected 1,797 x 65 numbers"
        ):
            digits._read(digits._find_file())


def test_a_set_too_small_to_hold_some_out(tmp_path):
    write_digits(tmp_path, count=8)
    with pytest.raises(
        RequestError, match="kmnist has 8 training samples, of which 0 would be held out for validation"
    ):
        read_arrays("kmnist", str(tmp_path))


# What changes between start and resume.


def stopped(tmp_path: Path, monkeypatch, **flags) -> Path:
    plain = Data.train_batches

    def train_batches(self, *args, **kwargs):
        for number, batch in enumerate(plain(self, *args, **kwargs)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Data, "train_batches", train_batches)
        with pytest.raises(Interrupted) as stop:
            search("dense", runs=tmp_path / "runs", **{**FLAGS, **flags})
    return Path(stop.value.path)


@pytest.mark.parametrize(
    ("file", "what"),
    [(0, "train samples"), (1, "train targets"), (2, "test samples"), (3, "test targets")],
)
def test_a_resume_takes_no_other_contents_of_a_data_set(file, what, tmp_path, monkeypatch):
    folder = write_digits(tmp_path)
    run = stopped(tmp_path, monkeypatch, data="kmnist", data_dir=str(tmp_path))
    path = folder / idx._NAMES[file]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))
    size = 60 if "train" in what else 20
    told = (
        f"the data of {run} are others than when the run was started: {what} was {size} of SHA-256 .* and is {size} of"
    )
    with pytest.raises(RunError, match=told):
        resume(run, progress=False)
    path.write_bytes(content)
    assert resume(run, progress=False).finished


def test_a_run_of_an_earlier_version_resumes_on_the_data_that_there_are(tmp_path, monkeypatch):
    folder = write_digits(tmp_path)
    run = stopped(tmp_path, monkeypatch, data="kmnist", data_dir=str(tmp_path))
    (Path(run) / "inputs.json").unlink()
    checksums = Path(run) / "checksums.json"
    known = json.loads(checksums.read_text())
    checksums.write_text(json.dumps({name: each for name, each in known.items() if name != "inputs.json"}))
    read = states.read_state

    def read_state(path):
        state = read(path)
        assert state["data"]
        return {**{key: value for key, value in state.items() if key != "bad_images"}, "data": ""}

    monkeypatch.setattr(states, "read_state", read_state)
    write_digits(tmp_path, count=60)
    (folder / idx._NAMES[2]).write_bytes((folder / idx._NAMES[2]).read_bytes()[:-1] + b"\0")
    again = resume(run, progress=False)
    assert again.finished and "data_fingerprint" not in again.summary


def test_the_contents_are_told_apart_by_every_part():
    plain = read_samples("digits", None, 0).contents
    assert set(plain) == {"train samples", "train targets", "test samples", "test targets"}
    arrays = read_arrays("digits")
    for name, part in {"train samples": "train_x", "test targets": "test_y"}.items():
        changed = getattr(arrays, part).copy()
        changed[5] += 1
        other = checks.digests(replace(arrays, **{part: changed}))
        assert {key for key in plain if plain[key] != other[key]} == {name}
    assert checks.digests(read_arrays("digits")) == plain == pickle.loads(pickle.dumps(plain))
