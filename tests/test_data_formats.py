"""Every data set as it lies on disk: small files in each format, whole, damaged and hostile."""

from __future__ import annotations

import gzip
import inspect
import os
import pickle
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from ticket_search.contract.errors import RequestError
from ticket_search.data import cifar, idx, svhn
from ticket_search.data.arrays import search_path
from ticket_search.data.dataset import split
from ticket_search.data.idx import read_idx
from ticket_search.data.sources import SOURCES, read_arrays

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FILES = {**cifar._SETS, **idx._SETS, "svhn": svhn._FILES}


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch, tmp_path):
    """Neither the machine's data nor the network."""
    monkeypatch.setattr(
        "ticket_search.data.arrays.search_path", lambda given: [Path(p) for p in (given, tmp_path / "cache") if p]
    )
    monkeypatch.setattr("ticket_search.data.arrays.cache_dir", lambda: tmp_path / "cache")

    def refuse(*args, **kwargs):
        raise OSError("no network")

    for files in FILES.values():
        monkeypatch.setattr(f"torchvision.datasets.{files.torchvision}.__init__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def write_idx(path: Path, array: np.ndarray) -> None:
    data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder: Path, ending: str = "") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": generator.integers(0, 256, (50, 28, 28)).astype(np.uint8),
        "train-labels-idx1-ubyte": generator.integers(0, 10, 50).astype(np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (20, 28, 28)).astype(np.uint8),
        "t10k-labels-idx1-ubyte": generator.integers(0, 10, 20).astype(np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / (name + ending), array)
    return arrays


# The sets below as [n, channels, height, width], whatever their files look like.


def draw(count: int, classes: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([[0, classes - 1], generator.integers(0, classes, count - 2)])
    return generator.integers(0, 256, (count, *shape)).astype(np.uint8), labels


def python2_string(data: bytes) -> bytes:
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def python2_batch(entries: dict[bytes, object]) -> bytes:
    """A pickle as Python 2 and NumPy 1 wrote it, protocol 2: text and bytes are one kind of string."""
    out = b"\x80\x02}("
    for key, value in entries.items():
        out += python2_string(key)
        if isinstance(value, np.ndarray):
            rows, columns = (b"M" + struct.pack("<H", size) for size in value.shape)
            out += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01" + rows + columns
            out += (
                b"\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            )
            out += python2_string(value.tobytes()) + b"tb"
        elif isinstance(value, list):
            out += b"](" + b"".join(b"K" + bytes([int(item)]) for item in value) + b"e"
        else:
            out += python2_string(value)
    return out + b"u."


def python3_batch(entries: dict[bytes, object]) -> bytes:
    return pickle.dumps(entries, protocol=2)


def write_batches(folder: Path, dump: Callable[[dict[bytes, object]], bytes]) -> None:
    x, y = draw(50, 10, (3, 32, 32), 0)
    parts = [(f"data_batch_{i + 1}", x[i::5], y[i::5]) for i in range(5)]
    for name, images, labels in [*parts, ("test_batch", *draw(10, 10, (3, 32, 32), 1))]:
        entries = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": images.reshape(-1, 3072)}
        (folder / name).write_bytes(dump(entries))


def write_cifar10_python2(folder: Path) -> None:
    write_batches(folder, python2_batch)


def write_cifar10_python(folder: Path) -> None:
    write_batches(folder, python3_batch)


def write_cifar10_binary(folder: Path) -> None:
    x, y = draw(50, 10, (3, 32, 32), 0)
    parts = [(f"data_batch_{i + 1}.bin", x[i::5], y[i::5]) for i in range(5)]
    for name, images, labels in [*parts, ("test_batch.bin", *draw(10, 10, (3, 32, 32), 1))]:
        rows = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
        (folder / name).write_bytes(b"".join(rows))


def write_cifar100_python(folder: Path, dump: Callable[[dict[bytes, object]], bytes] = python3_batch) -> None:
    for name, (images, labels) in {
        "train": draw(50, 100, (3, 32, 32), 0),
        "test": draw(10, 100, (3, 32, 32), 1),
    }.items():
        fine, coarse = labels.tolist(), (labels // 5).tolist()
        entries = {b"coarse_labels": coarse, b"fine_labels": fine, b"data": images.reshape(-1, 3072)}
        (folder / name).write_bytes(dump(entries))


def write_cifar100_python2(folder: Path) -> None:
    write_cifar100_python(folder, python2_batch)


def write_cifar100_binary(folder: Path) -> None:
    for name, (images, labels) in {
        "train": draw(50, 100, (3, 32, 32), 0),
        "test": draw(10, 100, (3, 32, 32), 1),
    }.items():
        rows = [bytes([label // 5, label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
        (folder / f"{name}.bin").write_bytes(b"".join(rows))


def write_svhn(folder: Path, compressed: bool = True) -> None:
    for name, (images, labels) in {"train": draw(50, 10, (3, 32, 32), 0), "test": draw(10, 10, (3, 32, 32), 1)}.items():
        table = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)}
        savemat(folder / f"{name}_32x32.mat", table, do_compression=compressed)


def write_svhn_uncompressed(folder: Path) -> None:
    write_svhn(folder, compressed=False)


def write_kmnist(folder: Path) -> None:
    arrays = [*draw(50, 10, (28, 28), 0), *draw(10, 10, (28, 28), 1)]
    for name, array in zip(IDX, arrays, strict=True):
        write_idx(folder / name, array.astype(np.uint8))


def write_emnist(folder: Path) -> None:
    for part, (images, labels) in {"train": draw(50, 47, (28, 28), 0), "test": draw(10, 47, (28, 28), 1)}.items():
        write_idx(folder / f"emnist-balanced-{part}-images-idx3-ubyte", images.transpose(0, 2, 1))
        write_idx(folder / f"emnist-balanced-{part}-labels-idx1-ubyte", labels.astype(np.uint8))


@dataclass(frozen=True)
class Format:
    name: str
    folder: str
    write: Callable[[Path], None]
    classes: int
    shape: tuple[int, ...]
    parts: int = 1


FORMATS = {
    "cifar10-python2": Format("cifar10", "cifar-10-batches-py", write_cifar10_python2, 10, (3, 32, 32), 5),
    "cifar10-python": Format("cifar10", "cifar-10-batches-py", write_cifar10_python, 10, (3, 32, 32), 5),
    "cifar10-binary": Format("cifar10", "cifar-10-batches-bin", write_cifar10_binary, 10, (3, 32, 32), 5),
    "cifar100-python2": Format("cifar100", "cifar-100-python", write_cifar100_python2, 100, (3, 32, 32)),
    "cifar100-python": Format("cifar100", "cifar-100-python", write_cifar100_python, 100, (3, 32, 32)),
    "cifar100-binary": Format("cifar100", "cifar-100-binary", write_cifar100_binary, 100, (3, 32, 32)),
    "svhn": Format("svhn", "svhn", write_svhn, 10, (3, 32, 32)),
    "svhn-uncompressed": Format("svhn", "svhn", write_svhn_uncompressed, 10, (3, 32, 32)),
    "kmnist": Format("kmnist", "KMNIST/raw", write_kmnist, 10, (1, 28, 28)),
    "emnist": Format("emnist", "EMNIST/raw", write_emnist, 47, (1, 28, 28)),
}
formats = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())


def written(form: Format, root: Path) -> list[Path]:
    folder = root / form.folder
    folder.mkdir(parents=True)
    form.write(folder)
    return sorted(folder.iterdir())


@formats
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_is_read_right(form, zipped, tmp_path):
    for path in written(form, tmp_path):
        if zipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    arrays = read_arrays(form.name, str(tmp_path))
    train_x, train_y = (
        np.concatenate([a[i :: form.parts] for i in range(form.parts)]) for a in draw(50, form.classes, form.shape, 0)
    )
    test_x, test_y = draw(10, form.classes, form.shape, 1)
    assert (arrays.train_x.shape, arrays.test_x.shape) == ((50, *form.shape), (10, *form.shape))
    assert (arrays.classes, arrays.validation, arrays.train_x.dtype) == (form.classes, 5, np.uint8)
    assert np.array_equal(arrays.train_x, train_x) and np.array_equal(arrays.test_x, test_x)
    assert np.array_equal(arrays.train_y, train_y) and np.array_equal(arrays.test_y, test_y)
    assert arrays.train_y.dtype == arrays.test_y.dtype == np.int64
    assert {0, form.classes - 1} <= set(arrays.test_y)
    data = split(form.name, arrays, 0)
    assert (data.train_size, len(data.validation_y), len(data.test_y)) == (45, 5, 10)
    channel, row, column = form.shape[0] - 1, 4, 7
    pixel, mean, std = test_x[3, channel, row, column], arrays.mean[channel], arrays.std[channel]
    assert data.test_x[3, channel, row, column].item() == pytest.approx((pixel / 255 - mean) / std, abs=1e-5)


@formats
def test_damaged_files_are_named(form, tmp_path):
    for path in written(form, tmp_path):
        whole = path.read_bytes()
        cuts = [whole[: len(whole) * part // 7] for part in range(1, 7)]
        # Of MATLAB's uncompressed files the last bytes may be padding.
        for data in [b"", b"hello world", bytes(range(256)) * 8, pickle.dumps({}, protocol=2), whole[:-8], *cuts]:
            path.write_bytes(data)
            with pytest.raises(RequestError) as caught:
                read_arrays(form.name, str(tmp_path))
            assert str(path) in str(caught.value)
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(whole)[:-5])
        path.unlink()
        with pytest.raises(RequestError, match=f"{path.name}.gz cannot be read"):
            read_arrays(form.name, str(tmp_path))
        path.write_bytes(whole)
    read_arrays(form.name, str(tmp_path))


def test_class_numbers_out_of_range_are_named(tmp_path):
    written(FORMATS["cifar10-binary"], tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(RequestError, match=r"data_batch_2.bin has the class number 10, expected 0 to 9"):
        read_arrays("cifar10", str(tmp_path))
    written(FORMATS["kmnist"], tmp_path)
    write_idx(tmp_path / "KMNIST" / "raw" / IDX[3], np.full(10, 200, np.uint8))
    with pytest.raises(RequestError, match="t10k-labels-idx1-ubyte has the class number 200"):
        read_arrays("kmnist", str(tmp_path))
    for path in (tmp_path / "KMNIST" / "raw").iterdir():
        write_idx(path, np.zeros((0, 28, 28) if "images" in path.name else 0, np.uint8))
    with pytest.raises(RequestError, match="train-labels-idx1-ubyte holds no samples"):
        read_arrays("kmnist", str(tmp_path))
    (tmp_path / "svhn").mkdir()
    table = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)}
    savemat(tmp_path / "svhn" / "test_32x32.mat", table)
    for wrong in ({"X": np.zeros((32, 32, 4), np.uint8)}, {"X": np.zeros((32, 32, 3, 4))}, {"y": np.ones(3, np.uint8)}):
        savemat(tmp_path / "svhn" / "train_32x32.mat", table | wrong)
        with pytest.raises(RequestError, match=r"train_32x32.mat: X is .* expected uint8 \(32, 32, 3, n\)"):
            read_arrays("svhn", str(tmp_path))
    savemat(tmp_path / "svhn" / "train_32x32.mat", table | {"y": np.full((4, 1), 11, np.uint8)})
    with pytest.raises(RequestError, match="train_32x32.mat has the class number 11"):
        read_arrays("svhn", str(tmp_path))


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_hostile_pickle_is_refused_and_not_executed(name, inside, tmp_path):
    path = written(FORMATS[f"{name}-python"], tmp_path)[0]
    mark = tmp_path / "executed"
    hostile = Hostile(f"touch {mark}")
    data = pickle.dumps({b"data": hostile} if inside else hostile, protocol=2)
    pickle.loads(data)
    assert mark.exists(), "it would have been"
    mark.unlink()
    path.write_bytes(data)
    with pytest.raises(RequestError, match=rf"{path.name} is not a batch of {name}: .*system, expected arrays only"):
        read_arrays(name, str(tmp_path))
    assert not mark.exists()


def test_only_the_names_of_arrays_are_taken_from_a_pickle(tmp_path):
    path = written(FORMATS["cifar10-python"], tmp_path)[0]
    for module, name in [("numpy.f2py.crackfortran", "ndarray"), ("numpy", "load"), ("numpy.lib", "_reconstruct")]:
        path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + b".")
        with pytest.raises(RequestError, match=f"it names {module}.{name}, expected arrays only"):
            read_arrays("cifar10", str(tmp_path))


@pytest.mark.slow
def test_mnist1d_is_that_of_its_package_and_leaves_the_random_streams_alone():
    package = pytest.importorskip("mnist1d.data")
    table = package.make_dataset(package.get_dataset_args())
    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5), np.random.seed(5)
    arrays = read_arrays("mnist1d")
    assert (random.random(), np.random.random()) == expected
    assert (arrays.train_x.shape, arrays.test_x.shape, arrays.classes) == ((4000, 40), (1000, 40), 10)
    assert np.array_equal(arrays.train_x, table["x"].astype(np.float32))
    assert np.array_equal(arrays.test_x, table["x_test"].astype(np.float32))
    assert np.array_equal(arrays.train_y, table["y"]) and np.array_equal(arrays.test_y, table["y_test"])
    data = split("mnist1d", arrays, 0)
    assert (data.train_size, len(data.validation_y), len(data.test_y), data.input_shape) == (3600, 400, 1000, (40,))
    assert torch.equal(data.test_x, torch.from_numpy(arrays.test_x)), "taken as generated"


def test_mnist1d_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(RequestError, match="pip install mnist1d"):
        read_arrays("mnist1d")


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_are_found_and_read_right(place, ending, tmp_path):
    arrays_written = write_set(tmp_path / place, ending)
    arrays = read_arrays("fashion-mnist", str(tmp_path))
    assert np.array_equal(arrays.train_x[:, 0], arrays_written["train-images-idx3-ubyte"])
    assert np.array_equal(arrays.test_y, arrays_written["t10k-labels-idx1-ubyte"])
    data = split("fashion-mnist", arrays, 0)
    assert (len(data.train_y), len(data.validation_y), len(data.test_y)) == (45, 5, 20)
    pixel = arrays_written["t10k-images-idx3-ubyte"][3, 4, 5]
    assert data.test_x[3, 0, 4, 5].item() == pytest.approx((pixel / 255 - 0.2860) / 0.3530, abs=1e-5)


def test_the_path_of_the_search(monkeypatch, tmp_path):
    monkeypatch.setenv("TICKET_DATA", "/from/environment")
    places = [str(place) for place in search_path("/given")]
    assert places[:2] == ["/given", "/from/environment"]
    assert places[-1] == "/usr/share/datasets"
    assert places[2].endswith("cache")


def test_every_source_that_is_read_from_files_is_tested_here():
    assert set(FILES) == set(SOURCES) - {"digits", "imagefolder", "mnist1d", "mnist1d-fresh", "python-text"}


@pytest.mark.parametrize("name", FILES)
def test_offline_and_absent_says_what_to_do(name, tmp_path):
    with pytest.raises(RequestError) as caught:
        read_arrays(name, str(tmp_path / "here"))
    message = str(caught.value)
    for part in (str(tmp_path / "here"), "no network", str(tmp_path / "cache" / name), "--data-dir", "$TICKET_DATA"):
        assert part in message
    for layout in FILES[name].layouts.values():
        assert ", ".join(layout) in message
    assert ("apt-get install dataset-fashion-mnist" in message) == (name == "fashion-mnist")


@pytest.mark.parametrize("name", FILES)
def test_downloads_ask_torchvision_for_both_splits_and_are_found(name, tmp_path, monkeypatch):
    files = FILES[name]
    monkeypatch.undo()
    signature = inspect.signature(getattr(torchvision.datasets, files.torchvision).__init__)
    asked = []

    def download(**arguments):
        signature.bind(None, **arguments)
        asked.append(arguments)

    monkeypatch.setattr("ticket_search.data.arrays.search_path", lambda given: [tmp_path / "cache"])
    monkeypatch.setattr("ticket_search.data.arrays.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(f"torchvision.datasets.{files.torchvision}", download)
    with pytest.raises(RequestError, match=f"torchvision downloaded {name}, but its files are not in"):
        read_arrays(name)
    assert all(call["download"] is True and call["root"] == str(tmp_path / "cache") for call in asked)
    splits = [call["split"] if files.by_split else call["train"] for call in asked]
    assert splits == (["train", "test"] if files.by_split else [True, False])


def test_damaged_idx_files(tmp_path):
    good = tmp_path / "good"
    write_idx(good, np.zeros((3, 4), np.uint8))
    assert read_idx(good).shape == (3, 4)
    whole = good.read_bytes()
    cases = {
        "short": whole[:-1],
        "long": whole + b"\0",
        "float": b"\0\0\x0d" + whole[3:],
        "empty": b"",
        "text": b"hello world",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RequestError, match=name):
            read_idx(tmp_path / name)
    zipped = gzip.compress(whole)
    for data in (zipped[:-5], zipped[:10] + b"\xff" * 20, zipped[:-8] + b"\0" * 8, whole):
        (tmp_path / "bad.gz").write_bytes(data)
        with pytest.raises(RequestError, match="bad.gz cannot be read"):
            read_idx(tmp_path / "bad.gz")
    write_set(tmp_path / "set")
    write_idx(tmp_path / "set" / "train-labels-idx1-ubyte", np.zeros(49, np.uint8))
    with pytest.raises(RequestError, match="do not match"):
        read_arrays("mnist", str(tmp_path / "set"))


@pytest.mark.data
def test_fashion_mnist_of_the_system(monkeypatch):
    monkeypatch.setattr("ticket_search.data.arrays.search_path", lambda given: [Path("/usr/share/datasets")])
    arrays = read_arrays("fashion-mnist")
    assert arrays.train_x.shape == (60000, 1, 28, 28)
    assert (arrays.train_x.mean() / 255, arrays.train_x.std() / 255) == pytest.approx((0.2860, 0.3530), abs=1e-4)
    assert np.bincount(arrays.train_y).tolist() == [6000] * 10
