from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ticket_search.data import SOURCES, read_arrays
from ticket_search.data.arrays import search_path
from ticket_search.data.dataset import from_arrays, split
from ticket_search.data.idx import read_idx
from ticket_search.problems import RequestError


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


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch, tmp_path):
    """Neither the machine's data nor the network."""
    monkeypatch.setattr(
        "ticket_search.data.arrays.search_path", lambda given: [Path(p) for p in (given, tmp_path / "cache") if p]
    )
    monkeypatch.setattr("ticket_search.data.arrays.cache_dir", lambda: tmp_path / "cache")

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.__init__", refuse)
    monkeypatch.setattr("torchvision.datasets.MNIST.__init__", refuse)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_are_found_and_read_right(place, ending, tmp_path):
    written = write_set(tmp_path / place, ending)
    arrays = read_arrays("fashion-mnist", str(tmp_path))
    assert np.array_equal(arrays.train_x[:, 0], written["train-images-idx3-ubyte"])
    assert np.array_equal(arrays.test_y, written["t10k-labels-idx1-ubyte"])
    data = split("fashion-mnist", arrays, 0)
    assert (len(data.train_y), len(data.validation_y), len(data.test_y)) == (45, 5, 20)
    pixel = written["t10k-images-idx3-ubyte"][3, 4, 5]
    assert data.test_x[3, 0, 4, 5].item() == pytest.approx((pixel / 255 - 0.2860) / 0.3530, abs=1e-5)


def test_the_path_of_the_search(monkeypatch, tmp_path):
    monkeypatch.setenv("TICKET_DATA", "/from/environment")
    places = [str(place) for place in search_path("/given")]
    assert places[:2] == ["/given", "/from/environment"]
    assert places[-1] == "/usr/share/datasets"
    assert places[2].endswith("cache")


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_offline_and_absent_says_what_to_do(name, tmp_path):
    with pytest.raises(RequestError) as caught:
        read_arrays(name, str(tmp_path / "here"))
    message = str(caught.value)
    for part in (str(tmp_path / "here"), "no network", "train-images-idx3-ubyte", "--data-dir", "$TICKET_DATA"):
        assert part in message
    assert ("apt-get install dataset-fashion-mnist" in message) == (name == "fashion-mnist")


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
    (tmp_path / "cut.gz").write_bytes(gzip.compress(whole)[:-5])
    with pytest.raises(RequestError, match="cannot be read"):
        read_idx(tmp_path / "cut.gz")
    write_set(tmp_path / "set")
    write_idx(tmp_path / "set" / "train-labels-idx1-ubyte", np.zeros(49, np.uint8))
    with pytest.raises(RequestError, match="do not match"):
        read_arrays("mnist", str(tmp_path / "set"))


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    arrays = read_arrays("digits")
    bunch = load_digits()
    ours = {
        (image.tobytes(), int(label))
        for image, label in zip(
            np.concatenate([arrays.train_x, arrays.test_x]),
            np.concatenate([arrays.train_y, arrays.test_y]),
            strict=True,
        )
    }
    theirs = {
        ((image.astype(np.uint16) * 255 // 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    assert ours == theirs
    assert len(arrays.test_y) == 360
    assert set(np.bincount(arrays.test_y) > 20) == {True}


def test_the_test_split_is_fixed_and_validation_is_drawn_by_its_seed():
    arrays = read_arrays("digits")
    one, other = split("digits", arrays, 0), split("digits", arrays, 1)
    assert torch.equal(one.test_x, other.test_x)
    assert not torch.equal(one.validation_x, other.validation_x)
    samples = torch.cat([one.train_x, one.validation_x, one.test_x])
    assert len(samples) == 1797
    assert one.train_x.mean() == pytest.approx(0, abs=0.02)
    assert one.train_x.std() == pytest.approx(1, abs=0.02)
    assert one.input_shape == (1, 8, 8)


def test_arrays_in_memory():
    x = np.random.default_rng(0).integers(0, 256, (100, 3, 4, 4)).astype(np.uint8)
    y = np.arange(100) % 7
    data = from_arrays((x, y), 0)
    assert (len(data.train_y), len(data.validation_y), len(data.test_y), data.classes) == (72, 8, 20, 7)
    assert len(data.mean) == 3
    both = torch.cat([data.train_x, data.validation_x])
    assert both.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-2)
    given = from_arrays({"train": (torch.from_numpy(x), y), "test": (x[:10], y[:10])}, 0)
    assert (len(given.train_y), len(given.test_y)) == (90, 10)
    assert from_arrays((x, y), 0).name == data.name != given.name
    floats = from_arrays((x.astype(np.float64), y), 0)
    assert floats.train_x.dtype == torch.float32
    assert floats.train_x.max() > 200, "floats are taken as they are"
    with pytest.raises(RequestError, match="train samples have shape"):
        from_arrays({"train": (x, y), "test": (x[:, :1], y)}, 0)


@pytest.mark.parametrize("name", SOURCES)
def test_every_data_set_is_described(name):
    assert SOURCES[name].description


@pytest.mark.data
def test_fashion_mnist_of_the_system():
    from ticket_search.data import arrays as places

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "search_path", lambda given: [Path("/usr/share/datasets")])
        arrays = read_arrays("fashion-mnist")
    assert arrays.train_x.shape == (60000, 1, 28, 28)
    assert (arrays.train_x.mean() / 255, arrays.train_x.std() / 255) == pytest.approx((0.2860, 0.3530), abs=1e-4)
    assert np.bincount(arrays.train_y).tolist() == [6000] * 10
