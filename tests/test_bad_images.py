"""Folders with images that cannot be read, that change, or that lie there twice; and images in every form that can be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from supermask.masks.random_numbers import permutation
from ticket_search import Interrupted, resume, search
from ticket_search.contract.errors import RequestError, RunError
from ticket_search.data.folder import Streamed, open_folder
from ticket_search.data.image_files import ENDINGS
from ticket_search.data.images import decode, list_bad

SIZE, CLASSES = 8, ("ant", "bee")
FLAGS = {"data": "imagefolder", "image_size": 12, "workers": 0, "threads": 1, "batch_size": 6, "epochs": 2}
FLAGS |= {"model": "conv2", "model_args": "width=0.1", "optimizer": "adam", "progress": False}


def write_images(root: Path, **counts: int) -> None:
    """So many images of each class for each part, none of them alike, in folders that may be there already."""
    for part, count in counts.items():
        for name in CLASSES:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.random.default_rng([i, len(part), ord(name[0])]).integers(0, 256, (14, 14, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i:02}.png")


@pytest.fixture
def root(tmp_path) -> Path:
    write_images(tmp_path / "set", train=8, val=4, test=4)
    return tmp_path / "set"


def streamed(root: Path, **arguments) -> Streamed:
    return open_folder(str(root), 0, **{"image_size": SIZE, "workers": 0, **arguments})


def epoch(data: Streamed, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    order = permutation(data.train_size, 0, "order")
    return list(data.train_batches(order, 4, first, epoch=1))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Some image is told to be bad, and nothing else is."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    assert found
    assert all("cannot be read" in str(each.message) for each in found)


def same(some, others) -> bool:
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(some, others, strict=True))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def wrong_crc() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (14, 14), "red"), "PNG"))
    data[data.index(b"IDAT") - 4 + 8 + struct.unpack(">I", data[data.index(b"IDAT") - 4 :][:4])[0]] ^= 1
    return bytes(data)


def bomb() -> bytes:
    """A PNG of a kilobyte that says it is of 3,600 million pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = encoded(Image.new("RGB", (14, 14)), "PNG")
    return data[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


PHOTO = encoded(Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 100).convert("RGB"), "JPEG")
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404: no such picture</html>", "it is in no form of image that is known"),
    "truncated JPEG": (PHOTO[: len(PHOTO) // 2], "OSError: .*[Tt]runcated"),
    "header only": (PHOTO[:20], "known|Error: "),
    "wrong CRC": (wrong_crc(), "broken PNG file"),
    "bomb": (bomb(), "DecompressionBombError"),
    "floats": (encoded(Image.new("F", (14, 14), 0.5), "TIFF"), "its values are floats"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_takes_the_place_of_a_bad_image(kind, root):
    """In training the next good one of its class, cut out and mirrored as the bad one would be; elsewhere nothing."""
    data, (content, why) = streamed(root), BAD[kind]
    expected, tested = epoch(streamed(root)), list(data.batches("test", 3))
    (root / "train" / "bee" / "07.png").write_bytes((root / "train" / "bee" / "00.png").read_bytes())
    expected = epoch(streamed(root))
    for place in ("train/bee/07.png", "test/ant/01.png"):
        (root / place).write_bytes(content)
    data = streamed(root)
    with pytest.warns(UserWarning, match=f"train/bee/07.png cannot be read: .*{why}.*; the next of its class") as told:
        assert same(epoch(data), expected)
    with pytest.warns(UserWarning, match=r"test/ant/01.png cannot be read: .*; it is left out of test \(at most 1"):
        found = list(data.batches("test", 3))
    assert [len(y) for _, y in found] == [2, 3, 2], "of eight in threes the second is gone"
    kept = [0, 2, 3, 4, 5, 6, 7]
    assert torch.equal(torch.cat([x for x, _ in found]), torch.cat([x for x, _ in tested])[kept])
    assert data.bad.counts() == {"train": 1, "test": 1} and len(told) == 1
    with warnings.catch_warnings(action="error"):
        assert same(epoch(data), expected), "what was told is not told again"


def test_bad_images_are_the_same_for_workers_and_wherever_one_begins(root):
    for place in ("train/ant/03.png", "train/ant/04.png", "val/bee/00.png"):
        (root / place).write_bytes(b"")
    one, two = (streamed(root, workers=workers, max_bad_images=2) for workers in (0, 2))
    with told():
        batches = epoch(one)
        assert same(epoch(two), batches) and same(epoch(two, 2), batches[2:])
        assert same(two.batches("validation", 3), one.batches("validation", 3))
    assert one.bad.counts() == two.bad.counts() == {"train": 2, "validation": 1}
    other = streamed(root, max_bad_images=2, seed=5)
    with pytest.warns(UserWarning, match="cannot be read"):
        labels = [y for _, y in epoch(other)]
    assert torch.equal(torch.cat(labels), torch.cat([y for _, y in batches]))
    assert other.bad.counts() == {"train": 2}


@pytest.mark.parametrize("workers", [0, 1])
def test_more_bad_images_than_may_be_end_the_run(workers, root, capsys):
    for i in range(3):
        (root / "test" / "ant" / f"{i:02}.png").write_bytes(b"no image")
    with pytest.raises(RunError, match="the image .*test/ant/00.png cannot be read: .* Replace or remove it"):
        list(streamed(root, workers=workers, max_bad_images=0).batches("test", 2))
    expected = (
        r"^2 images of test are bad, of at most 1: .*ant/00.png cannot be read: .*; .*ant/01.png .*max-bad-images"
    )
    with (
        pytest.raises(RunError, match=expected) as caught,
        pytest.warns(UserWarning, match="ant/00.png cannot be read"),
    ):
        list(streamed(root, workers=workers).batches("test", 2))
    code = str(caught.value).partition("python -c ")[2].strip("'").replace("'\"'\"'", "'")
    exec(code, {})
    listed = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0][-15:] for line in listed] == [f"test/ant/{i:02}.png" for i in range(3)]
    assert list_bad(root) == 3
    with pytest.warns(UserWarning, match="cannot be read"):
        assert sum(len(y) for _, y in streamed(root, max_bad_images=3).batches("test", 2)) == 5


def test_many_bad_images_are_not_all_told_one_by_one(root):
    write_images(root, train=12)
    for i in range(9):
        (root / "train" / "ant" / f"{i:02}.png").write_bytes(b"")
    data = streamed(root, max_bad_images=9)
    with pytest.warns(UserWarning, match="images? .*cannot be read") as told:
        epoch(data)
    assert len(told) == 6 and "more images of train cannot be read" in str(told[-1].message)
    assert data.bad.counts() == {"train": 9}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_or_a_split_without_a_good_image(split, root):
    classes = CLASSES if split == "test" else ("ant",)
    for path in (path for name in classes for path in (root / split / name).iterdir()):
        path.write_bytes(b"")
    data = streamed(root, max_bad_images=100)
    what = "the class ant in train" if split == "train" else "test"
    with pytest.raises(RunError, match=f"no image of {what} can be read"), pytest.warns(UserWarning, match="cannot"):
        epoch(data) if split == "train" else list(data.batches("test", 3))


def test_images_that_change_while_a_run_goes_on_end_it(root, monkeypatch):
    path = root / "train" / "ant" / "02.png"
    data, whole = streamed(root), path.read_bytes()
    path.write_bytes(whole + b"more")
    had = f"it has {len(whole) + 4} bytes, and had {len(whole)} when the folder was listed"
    with pytest.raises(RunError, match=f"ant/02.png cannot be read: {had}"):
        epoch(data)
    path.write_bytes(whole)

    def fail(self: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(RunError, match="cannot be read: OSError: Input/output error"):
        epoch(data)
    assert data.bad.counts() == {}, "the disk is to blame, and no other image taken"


def ramp(bits: int) -> np.ndarray:
    return np.linspace(0, 2**bits - 1, 14 * 14).reshape(14, 14).astype(np.int64)


GREY = np.repeat((ramp(16) >> 8)[:, :, None], 3, 2)
COLOUR = np.zeros((14, 14, 3), np.uint8) + np.array([200, 30, 60], np.uint8)
TURNED = Image.fromarray(np.concatenate([COLOUR, 255 - COLOUR], 1))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # the camera was held upright
PALETTE = Image.fromarray(ramp(8).astype(np.uint8)).convert("P")
FORMS: dict[str, tuple[bytes, np.ndarray, int]] = {
    "16 bits grey": (encoded(Image.fromarray(ramp(16).astype(np.uint16)), "PNG"), GREY, 0),
    "16 bits grey, ppm": (encoded(Image.fromarray(ramp(16).astype(np.int32)), "PPM"), GREY, 0),
    "8 bits grey": (encoded(Image.fromarray((ramp(16) >> 8).astype(np.uint8)), "PNG"), GREY, 0),
    "one bit": (encoded(Image.fromarray(ramp(8) > 127), "PNG"), 255 * (np.repeat(ramp(8)[..., None], 3, 2) > 127), 0),
    "grey and alpha": (encoded(Image.new("LA", (14, 14), (200, 3)), "PNG"), np.full((14, 14, 3), 200), 0),
    "alpha": (encoded(Image.new("RGBA", (14, 14), (200, 30, 60, 9)), "PNG"), COLOUR, 0),
    "palette": (encoded(PALETTE, "PNG"), np.repeat(ramp(8)[..., None], 3, 2), 0),
    "palette with transparency": (
        encoded(PALETTE, "PNG", transparency=bytes(range(256))), np.repeat(ramp(8)[..., None], 3, 2), 0,
    ),
    "CMYK": (encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95), COLOUR, 3),
    "animation": (
        encoded(Image.fromarray(COLOUR), "GIF", save_all=True, append_images=[Image.new("RGB", (14, 14), "blue")]), COLOUR,
        0,
    ),
    "turned by its camera": (encoded(TURNED, "PNG", exif=EXIF), np.array(TURNED), 0),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_image_is_colour_of_8_bits(form):
    data, expected, tolerance = FORMS[form]
    with warnings.catch_warnings(action="error"):
        found = decode(data)
    assert found.mode == "RGB"
    assert np.abs(np.array(found).astype(int) - expected).max() <= tolerance


def test_forms_of_images_mix_in_one_folder(tmp_path):
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
        for number, (data, _, _) in enumerate(FORMS.values()):
            (tmp_path / "train" / name / f"{number}.png").write_bytes(data + name.encode())
    data = streamed(tmp_path)
    assert all(x.shape[1:] == (3, SIZE, SIZE) and x.isfinite().all() for x, _ in epoch(data))
    assert data.bad.counts() == {}


def test_what_is_no_image_is_passed_over_and_what_may_be_one_is_told(root):
    before = [bytes(path) for path in streamed(root).images.paths]
    for place in ("train/__MACOSX", "train/@eaDir", "train/.git", "train/ant/__MACOSX"):
        (root / place).mkdir()
        (root / place / "._00.jpg").write_bytes(b"")
    for place in ("train/ant/Thumbs.db", "train/ant/desktop.ini", "train/README.md", "test/bee/._00.png"):
        (root / place).write_bytes(b"")
    assert [bytes(path) for path in streamed(root).images.paths] == before
    (root / "train" / "ant" / "more").mkdir()
    (root / "train" / "bee" / "moving.GIF").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"is passed over in .*: .*train/ant/more, .*train/bee/moving.GIF$"):
        assert [bytes(path) for path in streamed(root).images.paths] == before


def test_names_of_any_kind(root):
    odd = "ünï ← cödé\n\x1b[31m"
    (root / "train" / "ant").rename(root / "train" / odd)
    for part in ("val", "test"):
        (root / part / "ant").rename(root / part / odd)
    raw = os.path.join(os.fsencode(root), b"train", b"bee", b"\xff 1.png")
    os.rename(root / "train" / "bee" / "00.png", raw)
    data = streamed(root)
    assert data.class_names == ("bee", odd) and sum(len(y) for _, y in epoch(data)) == 16
    (root / "test" / odd / "00.png").write_bytes(b"")
    Path(os.fsdecode(raw)).write_bytes(b"")
    data = streamed(root)
    with pytest.warns(UserWarning, match="cannot be read") as told:
        assert len(epoch(data)) + len(list(data.batches("test", 8))) == 5
    text = "".join(str(each.message) for each in told)
    assert "\x1b" not in text and "\n" not in text and "\\udcff 1.png" in text and "ünï ← cödé\\n\\x1b" in text
    assert text.encode()


def test_links_and_folders_that_lead_nowhere(root, monkeypatch):
    (root / "train" / "ant" / "99.png").symlink_to(root / "gone.png")
    (root / "train" / "ant" / "98.png").symlink_to(root / "train" / "ant" / "98.png")
    data = streamed(root, max_bad_images=2)
    assert data.train_size == 18
    with pytest.warns(UserWarning, match="cannot be read: .*(No such file|symbolic links)") as told:
        list(data.train_batches(np.arange(18), 6))
    assert data.bad.counts() == {"train": 2} and any("98.png" in str(each.message) for each in told)
    (root / "train" / "cow").symlink_to(root / "gone")
    (root / "val").rename(root / "away")
    (root / "val").symlink_to(root / "gone")
    scan = os.scandir

    def refuse(folder: Path) -> Iterator[os.DirEntry[str]]:
        if os.fspath(folder).endswith("train/bee"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RequestError) as caught:
        streamed(root)
    assert [problem.partition("; ")[0].replace(f"{root}/", "") for problem in caught.value.problems] == [
        "train/cow is a link to what is not there",
        "train/bee cannot be listed: Permission denied",
        "val cannot be listed: No such file or directory",
    ]


def test_a_file_that_may_not_be_read_is_a_bad_image(root, monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "01.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.warns(UserWarning, match="01.png cannot be read: PermissionError: Permission denied; the next"):
        epoch(streamed(root, max_bad_images=2))


def test_a_class_without_images_and_a_single_class(root, tmp_path, ticket):
    for part in ("train", "val", "test"):
        (root / part / "cow").mkdir()
    with pytest.raises(RequestError) as caught:
        streamed(root)
    endings = ", ".join(ENDINGS)
    assert caught.value.problems == [f"{root}/{p}/cow holds no images ({endings})" for p in ("train", "test", "val")]
    write_images(tmp_path / "one", train=12)
    os.rename(tmp_path / "one" / "train" / "bee", tmp_path / "bee")
    answer = ticket("search", "--method", "dense", "--data", "imagefolder", "--data-dir", str(tmp_path / "one"))
    expected = f"error: {tmp_path / 'one'} has the class ant only, expected two classes or more"
    assert (answer.code, answer.err.splitlines()[-1]) == (2, expected)


def slow_copies(root: Path, data: Streamed, split: str) -> int:
    paths = {part: [os.fsdecode(bytes(data.images.paths[i])) for i in data.splits[part]] for part in ("train", split)}
    known = {Path(path).read_bytes() for path in paths["train"]}
    return sum(Path(path).read_bytes() in known for path in paths[split])


@pytest.mark.parametrize("most", [(500, 4000), (500, 8)])
def test_copies_between_splits_are_told(most, root, monkeypatch):
    monkeypatch.setattr("ticket_search.data.image_files._HELD_OUT", most[0])
    monkeypatch.setattr("ticket_search.data.image_files._TRAINING", most[1])
    streamed(root)
    for number in (1, 2, 3):
        content = (root / "train" / "ant" / f"0{number}.png").read_bytes()
        (root / "test" / "bee" / f"copy{number}.png").write_bytes(content)
        # As long, and not the same.
        (root / "val" / "bee" / f"other{number}.png").write_bytes(content[:-1] + b"\0")
    with pytest.warns(UserWarning, match="images of test are among those of training too") as told:
        data = streamed(root)
    assert slow_copies(root, data, "test") == 3 and slow_copies(root, data, "validation") == 0
    (text,) = [str(each.message) for each in told]
    assert f"{root}: {'3' if most[1] > 8 else 'at least 1'} of the 11 images of test" in text


def stop_after(batches: int, monkeypatch) -> None:
    """The process is interrupted when so many batches of training have been read."""
    plain = Streamed.train_batches

    def train_batches(self, *args, **kwargs):
        nonlocal batches
        for batch in plain(self, *args, **kwargs):
            batches -= 1
            if batches == 0:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(Streamed, "train_batches", train_batches)


def test_a_run_with_bad_images_counts_them_and_resumes_as_if_never_stopped(root, tmp_path, monkeypatch):
    flags, orders = {**FLAGS, "data_dir": str(root)}, []
    plain = Streamed.train_batches
    with monkeypatch.context() as patch:
        patch.setattr(Streamed, "train_batches", lambda data, order, *a: orders.append(order) or plain(data, order, *a))
        good = search("dense", **flags, runs=tmp_path / "good")
    assert "bad_images" not in good.summary
    # One that the second epoch, which ends the training, does not come to.
    number = max(set(orders[-2][:12].tolist()) - set(orders[-1][:12].tolist()))
    bad = os.fsdecode(bytes(streamed(root).images.paths[number]))
    for place in (bad, "val/bee/01.png", "test/bee/02.png"):
        (root / place).write_bytes(b"")
    with told():
        whole = search("dense", **flags, runs=tmp_path / "whole")
        with monkeypatch.context() as patch:
            stop_after(3, patch)
            with pytest.raises(Interrupted) as stop:
                search("dense", **flags, runs=tmp_path / "stopped")
        again = resume(stop.value.path, progress=False)
    assert whole.summary["bad_images"] == {"train": 1, "validation": 1, "test": 1}
    share = whole.summary["test_accuracy"] / 100 * 7
    assert share == pytest.approx(round(share)), "of seven"
    assert again.summary["bad_images"] == whole.summary["bad_images"]
    assert (again.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert b"max_bad_images" not in (again.path / "ticket.safetensors").read_bytes()


def rename(root: Path) -> None:
    (root / "train" / "bee" / "00.png").rename(root / "train" / "bee" / "zz.png")


def change(root: Path) -> None:
    (root / "test" / "ant" / "00.png").write_bytes((root / "test" / "ant" / "01.png").read_bytes() + b"x")


def remove(root: Path) -> None:
    (root / "val" / "ant" / "00.png").unlink()


CHANGES: dict[Callable[[Path], None], str] = {
    rename: r"train/bee was 8 images of .* and is 8 images of",
    change: r"test/ant was 4 images of .* and is 4 images of",
    remove: r"val/ant was 4 images of .* and is 3 images of",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_resume_takes_no_other_images(change, root, tmp_path, ticket, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Interrupted) as stop:
            search("dense", **FLAGS, data_dir=str(root), runs=tmp_path / "runs")
    change(root)
    answer = ticket("resume", str(stop.value.path))
    assert answer.code == 1 and answer.err.count("\n") == 1, answer.err
    with pytest.raises(RunError, match=f"the data of .* are others than when the run was started: {CHANGES[change]}"):
        resume(stop.value.path, progress=False)


@pytest.mark.filterwarnings("default")
def test_the_command_line_tells_it_in_a_line(root, tmp_path, ticket):
    (root / "test" / "ant" / "00.png").write_bytes(b"")
    flags = {k.replace("_", "-"): v for k, v in FLAGS.items() if k != "progress"} | {
        "data-dir": root,
        "method": "dense",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    found = ticket("search", *words, "--json")
    assert found.code == 0 and json.loads(found.out)["bad_images"] == {"test": 1}
    told = [line for line in found.err.splitlines() if line.startswith("warning: the image")]
    assert len(told) == 1 and "test/ant/00.png cannot be read: the file is empty; it is left out" in told[0]
    refused = ticket("search", *words, "--max-bad-images", "0", "--name", "strict")
    assert refused.code == 1 and "Traceback" not in refused.err
    assert refused.err.splitlines()[-1].startswith(f"error: the image {root}/test/ant/00.png cannot be read")
    idle = ticket("search", "--method", "dense", "--max-bad-images", "3")
    assert idle.code == 2 and "--max-bad-images goes with --data imagefolder" in idle.err


def test_of_very_many_images_names_and_numbers_are_looked_at(root, monkeypatch):
    monkeypatch.setattr("ticket_search.data.image_files._MEASURED", 5)
    data, path = streamed(root), root / "train" / "ant" / "02.png"
    path.write_bytes(path.read_bytes() + b"more")
    assert len(epoch(data)) == 4 and streamed(root).contents == data.contents
    path.rename(path.with_name("99.png"))
    assert streamed(root).contents["train/ant"] != data.contents["train/ant"]
    with pytest.raises(RunError, match="02.png cannot be read: FileNotFoundError"):
        epoch(data)
