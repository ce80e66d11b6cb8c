"""Data in memory: splits, arrays, datasets, batches, augmentation, and functions named by the user."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from supermask.masks.random_numbers import permutation, uniform
from ticket_search.contract.errors import RequestError
from ticket_search.contract.leave import Leave, leave_here
from ticket_search.data.augmentation import Augmentation
from ticket_search.data.dataset import Data, from_arrays, split
from ticket_search.data.factories import find_factory, load_factory
from ticket_search.data.sources import SOURCES, read_arrays, read_samples

pytestmark = pytest.mark.quick


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


def test_fewer_training_samples_are_drawn_from_the_same_and_leave_validation_and_test_as_they_are():
    whole = read_samples("digits", None, 0)
    few, more = whole.first(50, 0), whole.first(200, 0)
    labels = {
        (*x, y) for x, y in zip(map(tuple, whole.train_x.flatten(1).tolist()), whole.train_y.tolist(), strict=True)
    }
    pairs = [
        {(*x, y) for x, y in zip(map(tuple, data.train_x.flatten(1).tolist()), data.train_y.tolist(), strict=True)}
        for data in (few, more)
    ]
    assert (few.train_size, len(pairs[0]), len(pairs[1])) == (50, 50, 200)
    assert pairs[0] < pairs[1] < labels
    assert torch.equal(few.validation_x, whole.validation_x) and torch.equal(few.test_y, whole.test_y)
    assert not torch.equal(few.train_x, whole.first(50, 1).train_x)
    with pytest.raises(RequestError, match="--train-size 2000: digits has 1293 training samples"):
        whole.first(2000, 0)


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


def test_samples_of_a_built_in_set():
    data = read_samples("digits", None, 1, seed=4, augmentation=Augmentation(crop=1))
    plain = split("digits", read_arrays("digits"), 1)
    assert torch.equal(data.train_x, plain.train_x) and torch.equal(data.validation_y, plain.validation_y)
    assert (data.seed, data.augmentation) == (4, Augmentation(crop=1))
    assert read_samples("digits", None, 1).augmentation == plain.augmentation == Augmentation()
    with pytest.raises(RequestError, match="unknown data set 'digit'; did you mean 'digits'"):
        read_samples("digit", None, 0)
    with pytest.raises(RequestError, match="the data set imagefolder is streamed"):
        read_arrays("imagefolder")


def images(count: int = 40, shape: tuple[int, ...] = (3, 6, 5)) -> Data:
    x = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
    return from_arrays({"train": (x, np.arange(count) % 4), "test": (x[:10], np.arange(10) % 4)}, 0)


@pytest.mark.parametrize(
    "order", [permutation(36, 0, "order"), torch.from_numpy(permutation(36, 0, "order"))], ids=type
)
def test_batches_without_augmentation_are_the_very_samples(order):
    data = images()
    batches = list(data.train_batches(order, 8, 0))
    assert [len(y) for _, y in batches] == [8, 8, 8, 8], "what is left over is dropped"
    index = torch.as_tensor(order)[:32]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.train_x[index])
    assert torch.equal(torch.cat([y for _, y in batches]), data.train_y[index])
    rest = list(data.train_batches(order, 8, 2))
    assert len(rest) == 2 and all(torch.equal(a[0], b[0]) for a, b in zip(rest, batches[2:], strict=True))
    assert list(data.train_batches(order, 8, 4)) == []
    ((x, y),) = data.train_batches(order, 100, 0)
    assert torch.equal(x, data.train_x[torch.as_tensor(order)]) and len(y) == data.train_size == 36
    for name in ("validation", "test"):
        batches = list(data.batches(name, 3))
        whole_x, whole_y = getattr(data, f"{name}_x"), getattr(data, f"{name}_y")
        assert torch.equal(torch.cat([x for x, _ in batches]), whole_x)
        assert torch.equal(torch.cat([y for _, y in batches]), whole_y)
        assert {len(y) for _, y in batches} == {3, 1}
    assert data.to("cpu").device == data.device == torch.device("cpu")


def slow_augment(data: Data, order: np.ndarray, size: int, epoch: int) -> list[torch.Tensor]:
    """Sample by sample, in pixels: pad with zeros, cut a window out, mirror it, normalize."""
    crop, flip = data.augmentation.crop, data.augmentation.flip
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (data.mean, data.std))
    found = []
    for batch in range(len(order) // size):
        draws = uniform(3 * size, data.seed, f"augmentation/{epoch}/{batch}")
        for k in range(size):
            image = data.train_x[order[batch * size + k]].numpy() * std + mean
            top, left = (int(draws[row * size + k] * (2 * crop + 1)) for row in (0, 1))
            height, width = image.shape[1:]
            window = np.pad(image, ((0, 0), (crop, crop), (crop, crop)))[:, top : top + height, left : left + width]
            if flip and draws[2 * size + k] < 0.5:
                window = window[:, :, ::-1]
            found.append(torch.from_numpy(((window - mean) / std).astype(np.float32)))
    return found


@pytest.mark.parametrize("augmentation", [Augmentation(2), Augmentation(0, True), Augmentation(3, True)], ids=str)
@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 4, 7)])
def test_augmentation_is_that_of_a_loop_over_samples(augmentation, shape):
    data = replace(images(shape=shape), augmentation=augmentation, seed=3)
    order = permutation(36, 0, "order")
    batches = list(data.train_batches(order, 8, 0, epoch=2))
    slow = torch.stack(slow_augment(data, order, 8, epoch=2))
    assert torch.allclose(torch.cat([x for x, _ in batches]), slow, atol=1e-5)
    assert torch.equal(torch.cat([y for _, y in batches]), data.train_y[torch.from_numpy(order[:32])])


def test_a_crop_shifts_and_a_flip_mirrors():
    data = images()
    order = np.arange(36)
    originals = data.train_x
    ((flipped, _),) = replace(data, augmentation=Augmentation(flip=True)).train_batches(order, 36, 0)
    mirrored = [torch.equal(x, original.flip(-1)) for x, original in zip(flipped, originals, strict=True)]
    same = [torch.equal(x, original) for x, original in zip(flipped, originals, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 8 < sum(mirrored) < 28
    ((cropped, _),) = replace(data, augmentation=Augmentation(crop=1)).train_batches(order, 36, 0)
    black = ((0 - torch.tensor(data.mean)) / torch.tensor(data.std)).view(3, 1, 1)
    seen = set()
    for x, original in zip(cropped, originals, strict=True):
        padded = black.expand(3, 8, 7).clone()
        padded[:, 1:7, 1:6] = original
        places = [(i, j) for i in range(3) for j in range(3) if torch.equal(x, padded[:, i : i + 6, j : j + 5])]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9, "every shift happens"


def test_augmentation_depends_on_seed_epoch_and_batch_only():
    data = replace(images(), augmentation=Augmentation(2, True))
    order = permutation(36, 0, "order")
    torch.manual_seed(0)
    stream = torch.get_rng_state()
    batches = [x for x, _ in data.train_batches(order, 6, 0, epoch=1)]
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(a, b[0]) for a, b in zip(batches[2:], data.train_batches(order, 6, 2, 1), strict=True))
    for other in (data.train_batches(order, 6, 0, 2), data.with_seed(1).train_batches(order, 6, 0, 1)):
        assert not torch.equal(next(other)[0], batches[0])
    again = data.train_batches(np.concatenate([order[:6], order]), 6, 0, 1)
    first, second = next(again)[0], next(again)[0]
    assert torch.equal(first, batches[0]) and not torch.equal(second, first), "of the same samples"
    floats = np.random.default_rng(0).normal(1, 1, (30, 2, 4, 4)).astype(np.float32)
    data = replace(from_arrays((floats, np.arange(30) % 2), 0), augmentation=Augmentation(2))
    ((x, _),) = data.train_batches(np.arange(data.train_size), 30)
    assert (x == 0).any() and not (data.train_x == 0).any(), "black is 0 where nothing was normalized"


def test_augmentation_that_cannot_be():
    with pytest.raises(RequestError, match="crop -1, expected pixels from 0"):
        Augmentation(crop=-1)
    data = from_arrays((np.ones((20, 5)), np.arange(20) % 2), 0)
    with pytest.raises(RequestError, match=r"samples have shape \(5,\), expected images"):
        replace(data, augmentation=Augmentation(flip=True))


class Squares(Dataset):
    """Samples whose values say which they are."""

    def __init__(self, count: int = 30, random: bool = False) -> None:
        self.count, self.random = count, random

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        noise = torch.rand(()) if self.random else 0.0
        return torch.full((2, 3), float(i)) + noise, i % 3


def test_a_dataset_is_its_samples_in_memory():
    arrays = np.broadcast_to(np.arange(30, dtype=np.float32)[:, None, None], (30, 2, 3)), np.arange(30) % 3
    data, expected = from_arrays(Squares(), 1), from_arrays(arrays, 1)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, f"{part}_x"), getattr(expected, f"{part}_x"))
        assert torch.equal(getattr(data, f"{part}_y"), getattr(expected, f"{part}_y"))
    assert data.name == expected.name
    both = from_arrays({"train": Squares(30), "test": Squares(10)}, 1)
    assert (both.train_size, len(both.validation_y), len(both.test_y)) == (27, 3, 10)
    assert both.test_x[:, 0, 0].tolist() == list(range(10))
    pixels = TensorDataset(torch.full((20, 1, 2, 2), 255, dtype=torch.uint8), torch.arange(20) % 2)
    assert from_arrays(pixels, 0).mean == (1.0,)
    assert len(from_arrays(Subset(Squares(), range(5, 25)), 0).test_y) == 4
    torch.manual_seed(0)
    first = from_arrays(Squares(random=True), 0)
    torch.manual_seed(1)
    stream = torch.get_rng_state()
    again = from_arrays(Squares(random=True), 0)
    assert torch.equal(first.train_x, again.train_x) and torch.equal(torch.get_rng_state(), stream)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())

    def __len__(self):
        return 3


class Listed(Dataset):
    def __init__(self, samples: list) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int):
        return self.samples[i]


SAMPLE = (torch.zeros(3), 0)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Endless(), "data is Endless, expected a torch Dataset"),
        ({"train": Squares(), "test": [SAMPLE]}, r"test is list, expected \(x, y\)"),
        (Listed([]), "data: the dataset is empty"),
        (Listed([SAMPLE, torch.zeros(())]), "sample 1 is Tensor, expected a pair"),
        (Listed([SAMPLE, (1, 2, 3)]), "sample 1 is tuple, expected a pair"),
        (Listed([(object(), 0)]), "x of sample 0 is object, expected a tensor; .*PILToTensor"),
        (Listed([SAMPLE, (torch.zeros(3), 0.5)]), r"sample 1 is torch.float32 \(\), sample 0 is torch.int64 \(\)"),
        (Listed([SAMPLE, (torch.zeros(3), "cat")]), "sample 1 holds 'cat', expected numbers"),
        (Listed([SAMPLE, ({"a": torch.zeros(3)}, 0)]), "sample 1 is built otherwise than sample 0"),
        (Listed([SAMPLE, (torch.zeros(4), 0)]), r"sample 1 is torch.float32 \(4,\), sample 0 is torch.float32 \(3,\)"),
        (Listed([SAMPLE, (torch.zeros(3).int(), 0)]), "sample 1 is torch.int32"),
        (Listed([SAMPLE] * 9), "9 samples, expected at least 10"),
        (Listed([(torch.zeros(3), 0)] * 20), "y has the class 0 only"),
    ],
)
def test_datasets_that_do_not_fit(dataset, expected):
    with pytest.raises(RequestError, match=expected):
        from_arrays(dataset, 0)


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    """A module and a package of the user's, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    (tmp_path / "my_factories.py").write_text(
        "import importlib\n"
        "number = 3\n"
        "class Group:\n"
        "    make = staticmethod(lambda: 'made')\n"
        "def load():\n"
        "    return importlib.import_module('my_helper').VALUE\n"
        "def fail():\n"
        "    raise OSError('no such table')\n"
        "def wants(x):\n"
        "    return x\n"
    )
    (tmp_path / "my_helper.py").write_text("VALUE = [1, 2]\n")
    (tmp_path / "my_broken.py").write_text("import surely_not_installed\n")
    (tmp_path / "my_typo.py").write_text("def load(:\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "tables.py").write_text("load = lambda: 'table'\n")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def load(spec: str):
    return load_factory(spec, {spec: Leave(os.getcwd())})


def test_factories_are_found_and_called(my_module: Path):
    before = list(sys.path)
    assert load("my_factories:load") == [1, 2]
    assert load("my_factories:Group.make") == "made"
    assert load("my_package.tables:load") == "table"
    assert find_factory("my_factories:wants", leave_here("my_factories:wants"))(5) == 5
    assert load("builtins:dict") == {}
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("my_factories", "'my_factories': expected package.module:function"),
        ("my_factories:", "expected package.module:function"),
        (":load", "expected package.module:function"),
        ("my_factories.py:load()", "expected package.module:function"),
        ("a:b:c", "expected package.module:function"),
        ("my_factorys:load", "there is no module my_factorys: .*; did you mean 'my_factories'?"),
        ("my_package.table:load", "there is no module my_package.table: .*; did you mean 'tables'?"),
        ("my_helper.inner:load", "there is no module my_helper.inner"),
        ("my_broken:load", "my_broken cannot be imported: ModuleNotFoundError: No module named 'surely_not_installed'"),
        ("my_typo:load", "my_typo cannot be imported: SyntaxError"),
        ("my_factories:laod", "my_factories has no 'laod'; did you mean 'load'?"),
        ("my_factories:Group.mak", "my_factories:Group has no 'mak'; did you mean 'make'?"),
        ("my_factories:number", "my_factories:number is int, expected a function"),
        ("my_factories:fail", "my_factories:fail raised OSError: no such table"),
        ("my_factories:wants", "my_factories:wants raised TypeError: .* missing 1 required positional argument: 'x'"),
    ],
)
def test_factories_that_are_not_to_be_had(my_module: Path, spec, expected):
    before = list(sys.path)
    with pytest.raises(RequestError, match=expected.replace("?", r"\?")):
        load(spec)
    assert sys.path == before
