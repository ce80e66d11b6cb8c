"""Folders of images, streamed: against files opened and transformed one by one."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import supermask
from supermask.masks.random_numbers import permutation, random_words
from ticket_search.contract.errors import RequestError, RunError
from ticket_search.data.folder import Streamed, open_folder, send_ahead
from ticket_search.data.sources import read_samples
from ticket_search.training.flops import flops_of

ENDINGS = ("jpg", "JPEG", "png", "bmp", "webp", "ppm")
CLASSES = ("ant", "bee", "cow")
SIZE = 8


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        pixels = generator.integers(0, 256, (int(generator.integers(9, 20)), 13, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.{ENDINGS[i % len(ENDINGS)]}")


# The test images of `photos` are of two of three classes.
pytestmark = pytest.mark.filterwarnings("ignore:.*has no images of classes that the network learns. ant")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """10 training images of each of 3 classes, and 4 test images of two of them. To be read only."""
    root = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(CLASSES):
        write_images(root / "train" / name, 10, seed)
    for seed, name in enumerate(("bee", "cow")):
        write_images(root / "test" / name, 4, 10 + seed)
    for folder in ("train", "train/ant", "test"):
        (root / folder / ".hidden.jpg").write_bytes(b"")
        (root / folder / "notes.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    return root


def streamed(root: Path, **arguments) -> Streamed:
    return open_folder(str(root), 0, **{"image_size": SIZE, "workers": 0, **arguments})


def paths_of(data: Streamed, split: str) -> list[Path]:
    return [Path(os.fsdecode(bytes(data.images.paths[i]))) for i in data.splits[split]]


def normalized(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def same(some, others) -> bool:
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(some, others, strict=True))


def test_the_splits_of_a_folder(photos):
    data = streamed(photos)
    assert (data.name, data.classes, data.class_names) == ("imagefolder", 3, CLASSES)
    assert (data.input_shape, data.device) == ((3, SIZE, SIZE), torch.device("cpu"))
    order = permutation(30, 0, "validation")
    listed = sorted(path for path in photos.glob("train/*/*.*") if path.suffix[1:] in ENDINGS and path.name[0] != ".")
    assert len(listed) == 30
    assert paths_of(data, "validation") == [listed[i] for i in sorted(order[:3])]
    assert paths_of(data, "train") == [listed[i] for i in sorted(order[3:])]
    assert data.train_size == 27
    assert [path.relative_to(photos).parts[:2] for path in paths_of(data, "test")] == [("test", "bee")] * 4 + [
        ("test", "cow")
    ] * 4
    for split in ("train", "validation", "test"):
        labels = data.images.labels[data.splits[split]]
        assert [CLASSES[label] for label in labels] == [path.parent.name for path in paths_of(data, split)]
    other = open_folder(str(photos), 1, workers=0)
    assert paths_of(other, "validation") != paths_of(data, "validation")
    assert (other.input_shape, other.images.size) == ((3, 224, 224), 224)
    assert open_folder(str(photos), 0).workers == min(8, os.cpu_count())


def test_without_a_test_split_a_fixed_fifth_is_held_out(photos, tmp_path):
    (tmp_path / "train").symlink_to(photos / "train")
    data = streamed(tmp_path)
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [22, 2, 6]
    assert data.splits["test"].tolist() == sorted(permutation(30, 0, "test")[:6])
    assert sorted(np.concatenate(list(data.splits.values()))) == list(range(30))
    assert open_folder(str(tmp_path), 5, workers=0).splits["test"].tolist() == data.splits["test"].tolist()
    (tmp_path / "val").symlink_to(photos / "test")
    assert paths_of(streamed(tmp_path), "test")[0].parts[-3:-1] == ("val", "bee")
    (tmp_path / "test").symlink_to(photos / "train")
    assert paths_of(streamed(tmp_path), "test")[0].parts[-3:-1] == ("test", "ant")


def test_held_out_images_are_the_resized_middle(photos):
    data = streamed(photos)
    for split in ("validation", "test"):
        batches = list(data.batches(split, 3))
        count = len(data.splits[split])
        assert [len(y) for _, y in batches] == [3] * (count // 3) + ([count % 3] if count % 3 else [])
        x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
        assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (count, 3, SIZE, SIZE))
        for image, label, path in zip(x, y, paths_of(data, split), strict=True):
            middle = v2.CenterCrop(SIZE)(v2.Resize(9)(Image.open(path).convert("RGB")))
            assert torch.allclose(image, normalized(middle), atol=1e-6)
            assert CLASSES[label] == path.parent.name


def test_training_images_are_cropped_and_flipped_by_seed_epoch_and_number(photos):
    data = streamed(photos, seed=3)
    order = permutation(27, 0, "order")
    batches = list(data.train_batches(order, 6, 0, epoch=2))
    assert [len(y) for _, y in batches] == [6] * 4, "what is left over is dropped"
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    seeds, paths = random_words(27, 3, "augmentation/2"), paths_of(data, "train")
    recipe = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
    for image, label, i in zip(x, y, order, strict=False):
        torch.manual_seed(int(seeds[i] >> np.uint64(1)))
        assert torch.allclose(image, normalized(recipe(Image.open(paths[i]).convert("RGB"))), atol=1e-6)
        assert CLASSES[label] == paths[i].parent.name
    assert same(data.train_batches(torch.from_numpy(order), 6, 0, 2), batches), "an order may be a tensor"
    ((whole, _),) = data.train_batches(order[:5], 6, 0, epoch=2)
    assert torch.equal(whole, x[:5])
    first = next(iter(data.train_batches(order, 6, 0, 3)))[0]
    assert not torch.equal(first, x[:6]), "another epoch"
    assert not torch.equal(next(iter(data.with_seed(4).train_batches(order, 6, 0, 2)))[0], x[:6]), "another seed"


def test_batches_do_not_depend_on_workers_nor_on_where_they_begin(photos):
    one, two = streamed(photos), streamed(photos, workers=2)
    order = permutation(27, 0, "order")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = list(one.train_batches(order, 4, 0, epoch=1))
    assert len(batches) == 6
    assert same(two.train_batches(order, 4, 0, epoch=1), batches)
    assert len(two._idle) == 1
    workers = [worker.pid for worker in two._idle[0]._iterator._workers]
    assert same(one.train_batches(order, 4, 2, epoch=1), batches[2:])
    assert same(two.train_batches(order, 4, 2, epoch=1), batches[2:])
    assert same(two.batches("test", 3), one.batches("test", 3))
    assert [worker.pid for worker in two._idle[0]._iterator._workers] == workers, "the workers stay"
    assert list(two.train_batches(order, 4, 6)) == []
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global stream"


def test_iterations_side_by_side_do_not_mix(photos):
    data = streamed(photos, workers=1)
    order = np.arange(27)
    expected = list(data.train_batches(order, 4, 0)), list(data.batches("test", 4))
    training = data.train_batches(order, 4, 0)
    begun = [next(training), next(training)]
    assert same(data.batches("test", 4), expected[1])
    assert same(begun + list(training), expected[0])
    abandoned = data.train_batches(order, 4, 0)
    next(abandoned)
    abandoned.close()
    assert same(data.train_batches(order, 4, 0), expected[0])


@pytest.mark.parametrize("ring", [False, True])
def test_workers_end_with_the_data_and_are_not_waited_for(ring, photos, monkeypatch, young_objects):
    # How long a worker is waited for, and how long it waits itself before it looks whether it is needed.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 20.0)
    data = streamed(photos, workers=2)
    batches = data.train_batches(np.arange(27), 4)
    next(batches)
    workers = list(batches.gi_frame.f_locals["read"].gi_frame.f_locals["loader"]._iterator._workers)
    if ring:
        object.__setattr__(data, "name", [batches, data])
    begun = time.monotonic()
    del data, batches
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0] and time.monotonic() - begun < 20


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers, tmp_path):
    for name in CLASSES:
        write_images(tmp_path / "train" / name, 6)
    data = streamed(tmp_path, workers=workers)
    others = set(multiprocessing.active_children())
    broken = {}
    for split in ("train", "test"):
        path = paths_of(data, split)[1]
        broken[split] = path
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    for split, batches in {
        "train": data.train_batches(np.arange(data.train_size), 4),
        "test": data.batches("test", 4),
    }.items():
        with pytest.raises(RunError) as caught:
            list(batches)
        assert str(caught.value).startswith(f"the image {broken[split]} cannot be read: ")
        assert "Traceback" not in str(caught.value)
        assert set(multiprocessing.active_children()) <= others, "no worker is left waiting"
    broken["train"].unlink()
    with pytest.raises(RunError, match=f"{broken['train'].name} cannot be read: FileNotFoundError"):
        list(data.train_batches(np.arange(data.train_size), 4))


def test_every_problem_of_a_folder_is_named_at_once(tmp_path):
    for name in ("train/ant", "train/bee", "train/cow", "test/ant", "test/bees", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("train/ant/a.png", "test/bees/b.png", "test/dog/c.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("")
    with pytest.raises(RequestError) as caught:
        open_folder(str(tmp_path), 0, image_size=0, workers=-1)
    expected = [
        "image size 0, expected pixels from 1",
        "-1 workers, expected a number from 0",
        f"{tmp_path}/train/bee holds no images (.jpg, .jpeg, .png, .bmp, .webp, .ppm)",
        f"{tmp_path}/train/cow holds no images (.jpg, .jpeg, .png, .bmp, .webp, .ppm)",
        f"{tmp_path}/test/ant holds no images (.jpg, .jpeg, .png, .bmp, .webp, .ppm)",
        f"{tmp_path}/test/bees: there is no class of this name in {tmp_path}/train; did you mean 'bee'?",
        f"{tmp_path}/test/dog: there is no class of this name in {tmp_path}/train",
        f"{tmp_path}/train: 1 images, expected at least 10",
    ]
    assert caught.value.problems == expected


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(RequestError, match="a folder of yours: --data-dir DIR with DIR/train/CLASS"):
        open_folder(None, 0)
    with pytest.raises(RequestError, match=f"{tmp_path}/absent/train cannot be listed: No such file or directory"):
        open_folder(str(tmp_path / "absent"), 0)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(RequestError) as caught:
        open_folder(str(tmp_path), 0)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        f"{tmp_path}/train has no class folders",
        f"{tmp_path}/val has no class folders",
    ]


def test_grey_and_transparent_images_are_colour(tmp_path):
    folder = tmp_path / "train" / "ant"
    folder.mkdir(parents=True)
    for i in range(5):
        Image.new("L", (9, 9), 255).save(folder / f"grey{i}.png")
        Image.new("RGBA", (9, 9), (255, 255, 255, 40)).save(folder / f"clear{i}.png")
    data = streamed(tmp_path)
    x = torch.cat([x for x, _ in data.train_batches(np.arange(data.train_size), 4)])
    assert torch.allclose(x, normalized(Image.new("RGB", (SIZE, SIZE), (255, 255, 255))).expand_as(x), atol=1e-6)


def test_a_folder_each_for_the_test_and_the_validation_split(photos, tmp_path):
    """Neither takes images of training; `val` alone is the test split, as ImageNet's is."""
    for name, count in (("train", 12), ("test", 2), ("val", 3)):
        for number, each in enumerate(CLASSES):
            write_images(tmp_path / name / each, count, seed=number)
    both = streamed(tmp_path)
    folders = {
        split: {Path(os.fsdecode(bytes(both.images.paths[number]))).parts[-3] for number in numbers}
        for split, numbers in both.splits.items()
    }
    assert folders == {"train": {"train"}, "validation": {"val"}, "test": {"test"}}
    assert [len(both.splits[split]) for split in ("train", "validation", "test")] == [36, 9, 6]
    assert [int(label) for label in both.images.labels[both.splits["validation"]]] == [0] * 3 + [1] * 3 + [2] * 3
    shutil.rmtree(tmp_path / "test")
    alone = streamed(tmp_path)
    assert (len(alone.splits["test"]), alone.train_size, len(alone.splits["validation"])) == (9, 32, 4)


def test_a_class_that_a_held_out_folder_lacks_is_told(photos):
    with pytest.warns(UserWarning, match="test has no images of classes that the network learns: ant$"):
        streamed(photos)


def test_images_are_normalized_as_asked(photos):
    plain = {"image_size": SIZE, "workers": 0}
    own = read_samples("imagefolder", str(photos), 0, **plain, image_mean=(0.5, 0.4, 0.3), image_std=(1.0, 0.5, 0.25))
    bare = read_samples("imagefolder", str(photos), 0, **plain, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    (x, _), (pixels, _) = next(own.batches("test", 4)), next(bare.batches("test", 4))
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    for channel, (mean, std) in enumerate(zip(own.mean, own.std, strict=True)):
        torch.testing.assert_close(x[:, channel], (pixels[:, channel] - mean) / std)


def test_it_is_a_built_in_data_set(photos):
    data = read_samples("imagefolder", str(photos), 0, seed=2, image_size=SIZE, workers=0)
    assert isinstance(data, Streamed)
    assert (data.seed, data.images.size, data.workers) == (2, SIZE, 0)
    assert same(data.batches("validation", 8), streamed(photos).batches("validation", 8))


def test_an_interrupt_is_left_to_the_main_process(photos):
    data = streamed(photos, workers=1)
    batches = data.train_batches(np.arange(27), 4)
    next(batches)
    (worker,) = list(batches.gi_frame.f_locals["read"].gi_frame.f_locals["loader"]._iterator._workers)
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.2)
    assert worker.is_alive()
    assert len(list(batches)) == 5


def test_batches_are_copied_ahead_of_a_gpu_and_come_in_order(monkeypatch):
    """The copy of a batch begins before the one before it is given out, and is waited for by what uses it."""
    done: list[str] = []

    class Stream:
        def record_event(self):
            done.append("copied")
            return "event"

        def wait_event(self, event):
            done.append(f"waits for {event}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: done.append("kept"), raising=False)
    sent = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: sent(self, "cpu"))
    batches = [(torch.full((2,), float(number)), torch.tensor([number])) for number in range(3)]
    for place, (x, y) in enumerate(send_ahead(iter(batches), torch.device("cuda"))):
        assert x.tolist() == [place, place] and y.tolist() == [place]
        done.append("used")
    took = ["waits for event", "kept", "kept", "used"]
    assert done == ["copied", "copied", *took, "copied", *took, *took]
    assert list(send_ahead(iter([]), torch.device("cuda"))) == []


@pytest.mark.gpu
def test_batches_on_the_gpu_are_those_of_the_cpu(photos):
    here, there = streamed(photos), streamed(photos, workers=2).to("cuda")
    state = torch.cuda.get_rng_state()
    for (x, y), (other_x, other_y) in zip(
        here.train_batches(np.arange(27), 4), there.train_batches(np.arange(27), 4), strict=True
    ):
        assert other_x.is_cuda and torch.allclose(x, other_x.cpu(), atol=1e-6) and torch.equal(y, other_y.cpu())
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.fixture
def small(photos, ticket) -> dict[str, Any]:
    """The summary of a run `small` of images of 12 pixels, in the folder that is current."""
    options = {"data": "imagefolder", "data-dir": photos, "image-size": 12, "workers": 0, "threads": 1, "batch-size": 6}
    options |= {"image-mean": "0.5,0.4,0.3", "image-std": "0.2,0.3,0.5"}
    options |= {"epochs": 2, "model": "conv2", "model-args": "width=0.1", "name": "small", "density": 0.5}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    made = ticket("search", "--method", "one-shot", "--optimizer", "adam", *words, "--json")
    assert made.code == 0, made.err
    return json.loads(made.out)


def test_a_run_is_evaluated_on_its_images_at_their_size(photos, small, ticket):
    measured = ticket("evaluate", "small", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["test_accuracy"] == pytest.approx(small["test_accuracy"])
    assert json.loads(measured.out)["val_accuracy"] == pytest.approx(small["val_accuracy"])
    # Of so few images the accuracy is the same by chance.
    assert json.loads(measured.out)["val_loss"] == pytest.approx(small["val_loss"], rel=1e-4)
    elsewhere = ticket("evaluate", "small", "--data-dir", str(photos / "train"))
    assert elsewhere.code == 2, "what is typed counts"


@pytest.mark.slow
def test_every_other_command_takes_the_images_of_the_run_at_their_size(photos, small, ticket, tmp_path):
    benched = ticket("bench", "small", "--engines", "eager", "--batch-sizes", "2", "--seconds", "0.01", "--json")
    assert benched.code == 0, benched.err
    flops = flops_of(supermask.load(tmp_path / "runs/small/ticket.safetensors").model(), torch.zeros(1, 3, 12, 12))
    assert json.loads(benched.out)["sizes"]["macs"] == flops // 2
    assert ticket("inspect", "small", "--activations").code == 0
    plan = ticket("train", "small", "--dry-run", "--json")
    assert plan.code == 0, plan.err
    config = json.loads(plan.out)["config"]
    assert (config["data_dir"], config["image_size"]) == (str(photos), 12)
