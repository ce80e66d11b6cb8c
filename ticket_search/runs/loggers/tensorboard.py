"""What is logged, under which tag, and the event files that TensorBoard reads."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy

from ...contract.metric import ACCURACY, Metric, known_value
from ..first_layer import Picture, draw
from ..names import CONFIG, CONNECT_RUNS, CONTROL_RUNS

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch import Tensor, nn

    from supermask import Masks

    from ...contract.flags import Config

# TensorBoard shows the meanings beside the tags. `{}` stands for the name of each masked tensor.
TAGS = {
    "scalars": {
        "loss/train": "mean loss of the steps since the last row",
        "loss/validation": "mean loss on the validation split",
        "accuracy/train": "percent of the samples of the steps since the last row",
        "accuracy/validation": "percent of the validation split",
        "accuracy/test": "percent of the test split, once for each finished ticket",
        "learning-rate": "of the step",
        "density/total": "fraction of the maskable weights kept",
        "density/{}": "fraction of the tensor's weights kept",
        "mask/changed": "share of the mask entries that changed since the last row",
        "speed/samples-per-second": "training samples per second since the last row, evaluation not counted",
        "memory/allocated-megabytes": "10^6 bytes on the GPU at the highest since the process took up the run",
        "level/accuracy-test": "percent of the test split by kept weights: a level's ticket at the step of that number",
        "level/accuracy-validation": "percent of the validation split by kept weights",
        "level/accuracy-test-at-min-validation-loss": "percent of the test split by kept weights, stopped early",
        "accuracy/final-test": "percent of the test split, of the run's ticket",
        "accuracy/final-validation": "percent of the validation split, of the run's ticket",
        "density/kept": "number of weights that the run's ticket keeps",
        "controls/{}": "of the run's controls, one after the other as KIND or KIND-level-NN: what their trainings log",
    },
    "histograms": {
        "weights/{}": "the tensor's surviving weights at the end of a training",
        "scores/{}": "the tensor's learned scores after an epoch",
    },
    "images": {
        "first-layer/kept-per-pixel": "number of weights that the first layer keeps of each input pixel",
        "first-layer/masks": "masks of the first layer's first units or filters, white = kept",
    },
}
# So old is what TensorBoard shows of a run in progress, at most, once the next number comes.
_SECONDS_BETWEEN_FLUSHES = 5.0
_CLASSES = {"scalars": "DATA_CLASS_SCALAR", "histograms": "DATA_CLASS_TENSOR", "images": "DATA_CLASS_BLOB_SEQUENCE"}
# The columns of the HPARAMS tab: any method's, because TensorBoard takes the list of one run for all. It shows five at
# first, and those before others that are said to differ.
HPARAMS = dict.fromkeys(("method", "model", "data", "init", "allocation"), "DATA_TYPE_STRING")
HPARAMS |= dict.fromkeys(("density", "seed", "lr", "epochs", "batch_size"), "DATA_TYPE_FLOAT64")
SHOWN_HPARAMS = ("method", "model", "data", "density", "seed")
METRICS = {
    "test_accuracy": "accuracy/final-test",
    "val_accuracy": "accuracy/final-validation",
    "kept": "density/kept",
}
BUCKETS = 30
# Minimum, maximum, number, sum and sum of squares of the values, the buckets' upper ends, and how many lie in each.
Histogram = dict[str, Any]
# What is shown of a control's training, in the entry of the run that it belongs to.
_OF_CONTROLS = ("loss/train", "loss/validation", "accuracy/train", "accuracy/validation")


def tag_of(tag: str, metric: Metric) -> str:
    """The tag of a run's metric in place of that of accuracy: `mse/test`, `level/mse-validation`."""
    return tag.replace("accuracy", metric.name)


def meaning_of(tag: str, plugin: str, metric: Metric) -> str:
    """What is logged under a tag."""
    for known, meaning in TAGS[plugin].items():
        if "accuracy" in known and tag == tag_of(known, metric):
            return meaning if metric.is_accuracy else meaning.replace("percent", f"{metric.in_words},")
    return TAGS[plugin].get(tag) or TAGS[plugin].get(tag.partition("/")[0] + "/{}", "")


def metrics_of(metric: Metric) -> dict[str, str]:
    """The metrics of the HPARAMS tab, by the names that they have in a summary, with their tags."""
    named = {name if metric.is_accuracy else name.replace("accuracy", "metric"): tag for name, tag in METRICS.items()}
    return {name: tag_of(tag, metric) for name, tag in named.items()}


def densities(masks: Masks) -> dict[str, float]:
    """The density of the whole and of each tensor, by tag."""
    tensors = {f"density/{name}": density for name, density in masks.densities.items()}
    return {"density/total": masks.density, **tensors}


def surviving_weights(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The kept weights of each masked tensor as a vector, by tag."""
    from supermask.masks.targets import unwrap

    weights = {name: unwrap(model).get_parameter(name).detach() for name in masks}
    return {f"weights/{name}": weight[masks[name].to(weight.device)] for name, weight in weights.items()}


def level_curve(levels: Sequence[Mapping[str, Any]], metric: Metric = ACCURACY) -> list[tuple[int, dict[str, float]]]:
    """Values of the metric by tag for each number of kept weights, the fewest first.

    TensorBoard's reader drops what it has of a tag when a smaller step comes, so the curve is written at once, upwards.
    """
    curve = []
    for row in sorted(levels, key=lambda row: int(row["kept"])):
        values = {"level/accuracy-test": known_value(row, "test"), "level/accuracy-validation": known_value(row, "val")}
        if "min_validation_loss" in row:
            values["level/accuracy-test-at-min-validation-loss"] = known_value(row["min_validation_loss"], "test")
        curve.append((int(row["kept"]), {tag_of(tag, metric): value for tag, value in values.items()}))
    return curve


class EventFile:
    """The run's event files: one per start of the process, cut back to the saved step when a run resumes.

    TensorBoard makes an entry of each folder with event files. Those of a control, which is trained in `controls/NAME`
    of a run's folder, lie beside the run's own, `@NAME` ends their names, and their tags begin with `controls/NAME/`: a
    run with its controls is one entry. In version 0.1 controls had entries of their own, which `^[^/]*$` hides. Of the
    many trainings in `connect/` of a run's folder nothing is shown.

    TensorBoard reads the files of a folder in the order of their names, which begin with the time to the nanosecond.
    Written by its record writer, in this thread: torch.utils.tensorboard takes longer to import than a short search to
    run, and what a thread of its own cannot write is told too late or never.
    """

    def __init__(self, folder: Path, metric: Metric = ACCURACY) -> None:
        run = folder.resolve().parents[1] if folder.resolve().parent.name == CONTROL_RUNS else folder
        self.control = folder.name if run != folder and (run / CONFIG).exists() else ""
        self.folder, self.metric = run if self.control else folder, metric
        above = folder.resolve().parents
        self.hidden = len(above) > 2 and above[1].name == CONNECT_RUNS and (above[2] / CONFIG).exists()
        self.writer: RecordWriter | None = None
        self.file: BinaryIO | None = None
        self.flushed = 0.0
        self.described: set[str] = set()

    def shown(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """What is shown of scalars, by the tags that are shown; of a control the losses and the metric."""
        if not self.control:
            return values
        shown = {tag_of(tag, self.metric) for tag in _OF_CONTROLS}
        return {self._tag_of_control(tag): value for tag, value in values.items() if tag in shown}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars at a step, by tag; of a control those of losses and of the metric."""
        self._add_scalars(step, self.shown(values))

    def write_histograms(self, step: int, values: Mapping[str, Tensor]) -> dict[str, Histogram]:
        """Add histograms at a step, by tag, each of all finite values of a tensor in 30 buckets of equal width.

        Returns:
            What was added.
        """
        counted = {} if self.control or self.hidden else _count_all(values)
        self._add("histograms", step, {tag: {"histo": found} for tag, found in counted.items()})
        return counted

    def write_pictures(self, step: int, pictures: Mapping[str, Picture]) -> dict[str, bytes]:
        """Add pictures at a step, by tag, drawn.

        Returns:
            What was added, as PNG files.
        """
        pngs, images = {}, {}
        for tag, picture in ({} if self.control or self.hidden else pictures).items():
            png, width, height = draw(picture)
            pngs[tag] = png
            images[tag] = {"image": {"encoded_image_string": png, "width": width, "height": height, "colorspace": 4}}
        self._add("images", step, images)
        return pngs

    def write_start(self, config: Config) -> None:
        """Add what the HPARAMS tab shows of the run in its columns, and which columns and metrics there are."""
        if self.control:
            return
        from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo

        names = [{"name": name, "type": kind, "differs": name in SHOWN_HPARAMS} for name, kind in HPARAMS.items()]
        metrics = [{"name": {"tag": tag}, "display_name": name} for name, tag in metrics_of(self.metric).items()]
        self._add_session("experiment", {"hparam_infos": names, "metric_infos": metrics})
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in config.model_dump(mode="json", include=set(HPARAMS), exclude_none=True).items():
            setattr(start.hparams[name], "string_value" if isinstance(value, str) else "number_value", value)
        self._add_session("session_start_info", start)

    def write_end(self, step: int, summary: Mapping[str, Any]) -> None:
        """Add the numbers of a finished run, and that it is finished."""
        for at, values in self.ends(step, summary):
            self._add_scalars(at, values)
        if not self.control:
            self._add_session("session_end_info", {"status": "STATUS_SUCCESS", "end_time_secs": time.time()})

    def ends(self, step: int, summary: Mapping[str, Any]) -> list[tuple[int, Mapping[str, float]]]:
        """The numbers of a finished run at their steps: the metrics of the HPARAMS tab, and the curve of its levels.

        Of a control this is its value on the test split; any row of numbers will do.
        """
        if self.control:
            last = {self._tag_of_control(tag_of("accuracy/test", self.metric)): known_value(summary, "test")}
            return [(0, last), (step, last)]
        last = {tag: summary[name] for name, tag in metrics_of(self.metric).items()}
        # A line: charts leave out a single point that lies above those of other runs.
        return [*level_curve(summary.get("levels", []), self.metric), (0, last), (step, last)]

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add("scalars", step, {tag: {"simple_value": value} for tag, value in values.items()})

    def _tag_of_control(self, tag: str) -> str:
        return f"controls/{self.control}/{tag.replace('/', '-')}"

    def _files(self) -> list[Path]:
        """The event files in the folder that are of this run, or of this control."""
        found = sorted(self.folder.glob("events.out.tfevents.*"))
        return [path for path in found if path.name.partition("@")[2] == self.control]

    def _add_session(self, kind: str, content: Any) -> None:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        # What TensorBoard's own hparams.metadata makes, which takes longer to import than all else here.
        data = HParamsPluginData(version=0, **{kind: content}).SerializeToString()
        nothing = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{}]}}
        metadata = {"plugin_data": {"plugin_name": "hparams", "content": data}}
        self._send(0, [{"tag": f"_hparams_/{kind}", "metadata": metadata, "tensor": nothing}])

    def _add(self, plugin: str, step: int, values: Mapping[str, Mapping[str, Any]]) -> None:
        summary = []
        if not values:
            return
        for tag, value in values.items():
            added = {"tag": tag, **value}
            if tag not in self.described:
                self.described.add(tag)
                added["metadata"] = {
                    "summary_description": meaning_of(tag, plugin, self.metric),
                    "plugin_data": {"plugin_name": plugin},
                    "data_class": _CLASSES[plugin],
                }
            summary.append(added)
        self._send(step, summary)

    def _send(self, step: int, values: Sequence[Mapping[str, Any]]) -> None:
        if self.hidden:
            return
        from tensorboard.compat.proto.event_pb2 import Event

        now = time.time()
        if self.writer is None:
            self.writer = self._open()
            self._write(Event(wall_time=now, file_version="brain.Event:2"))
        self._write(Event(wall_time=now, step=step, summary={"value": values}))
        if now - self.flushed > _SECONDS_BETWEEN_FLUSHES:
            self.writer.flush()
            self.flushed = now

    def _open(self) -> RecordWriter:
        from tensorboard.summary.writer.record_writer import RecordWriter

        suffix = f"@{self.control}" if self.control else ""
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}{suffix}"
        self.file = (self.folder / name).open("xb")
        return RecordWriter(self.file)

    def _write(self, event: Event) -> None:
        assert self.writer is not None, "a file is open"
        self.writer.write(event.SerializeToString())

    def sizes(self) -> dict[str, int]:
        """Bytes of each event file, with everything written so far on disk."""
        if self.writer is not None and self.file is not None:
            self.writer.flush()
            os.fsync(self.file.fileno())
        return {path.name: path.stat().st_size for path in self._files()}

    def cut_back(self, sizes: dict[str, int]) -> None:
        """Drop what was written after `sizes` was taken, so that no step of a resumed run appears twice."""
        for path in self._files():
            if path.name not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[path.name]:
                with path.open("r+b") as file:
                    file.truncate(sizes[path.name])

    def close(self) -> None:
        """Flush and close."""
        writer, self.writer, self.file = self.writer, None, None
        if writer is not None:
            writer.close()


def _count_all(values: Mapping[str, Tensor]) -> dict[str, Histogram]:
    """The histogram of each tensor, by tag: of those on a device counted there, and read together."""
    found = {tag: _count(value) for tag, value in values.items() if value.is_cpu or value.numel() == 0}
    there = {tag: _count_there(value) for tag, value in values.items() if tag not in found}
    if there:
        import torch

        rows = torch.stack(list(there.values())).cpu().double().numpy()
        found |= {tag: _describe(row) for tag, row in zip(there, rows, strict=True)}
    return {tag: found[tag] for tag in values}


def _count_there(values: Tensor) -> Tensor:
    """Minimum, maximum, number, sum, sum of squares and the counts of 30 buckets, on the tensor's device."""
    import torch

    # Of 32 bits a sum of ones ends at 16 million; Apple's GPUs have no others.
    numbers = values.detach().reshape(-1).to(torch.float32 if values.device.type == "mps" else torch.float64)
    finite = numbers.isfinite()
    low = torch.where(finite, numbers, torch.inf).amin()
    high = torch.where(finite, numbers, -torch.inf).amax()
    zeroed = torch.where(finite, numbers, 0.0)
    # As NumPy's: of equal numbers the buckets lie around them.
    start, end = torch.where(low == high, low - 0.5, low), torch.where(low == high, high + 0.5, high)
    places = ((numbers - start) / (end - start) * BUCKETS).nan_to_num(0.0, 0.0, 0.0).long().clamp(0, BUCKETS - 1)
    counts = torch.zeros(BUCKETS, dtype=numbers.dtype, device=numbers.device)
    counts.scatter_add_(0, places, finite.to(numbers.dtype))
    told = torch.stack([low, high, finite.sum().to(numbers.dtype), zeroed.sum(), zeroed.square().sum()])
    return torch.cat([told, counts])


def _describe(row: numpy.ndarray[Any, Any]) -> dict[str, Any]:
    low, high, size, total, squares = row[:5].tolist()
    if not size:
        return {}
    start, end = (low - 0.5, high + 0.5) if low == high else (low, high)
    return {
        "min": low,
        "max": high,
        "num": size,
        "sum": total,
        "sum_squares": squares,
        "bucket_limit": numpy.linspace(start, end, BUCKETS + 1)[1:],
        "bucket": row[5:],
    }


def _count(values: Tensor) -> dict[str, Any]:
    numbers = values.detach().cpu().double().numpy().ravel()
    numbers = numbers[numpy.isfinite(numbers)]
    if not numbers.size:
        return {}
    counts, edges = numpy.histogram(numbers, BUCKETS)
    return {
        "min": numbers.min(),
        "max": numbers.max(),
        "num": numbers.size,
        "sum": numbers.sum(),
        "sum_squares": numpy.square(numbers).sum(),
        "bucket_limit": edges[1:],
        "bucket": counts,
    }
