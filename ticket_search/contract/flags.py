"""What a run is told: the flags that all methods share, their checks, and TOML in and out. Imports no torch."""

from __future__ import annotations

import json
import re
import tomllib
import types
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from .errors import RequestError, nearest_hint, unknown

DURATION = re.compile(r"(\d+)(it|ep)?")
Activation = Literal["relu", "gelu", "leaky-relu", "tanh", "identity"]
Init = Literal["kaiming-normal", "kaiming-uniform", "signed-constant", "unsigned-constant", "xavier-normal", "keep"]


def _check_duration(text: str) -> str:
    match = DURATION.fullmatch(text)
    if match is None or (match[2] is None and int(match[1]) != 0):
        raise ValueError("expected steps or epochs, like 500it or 2ep, or 0")
    return text


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(word for word in value.split(",") if word)
    return tuple(value) if isinstance(value, list) else value


Duration = Annotated[
    str, BeforeValidator(lambda value: str(value) if value == 0 else value), AfterValidator(_check_duration)
]
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Epochs = Annotated[tuple[pydantic.PositiveInt, ...], BeforeValidator(_split)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The shared flags. Each method adds its own and sets its own defaults."""

    draws_masks: ClassVar[bool] = False

    method: str = Field("", description="the search method (`ticket methods` lists them)")
    model: str = Field(
        "lenet-300-100", description="the network (`ticket models`), torchvision:NAME, or package.module:function"
    )
    model_args: Words = Field((), description="arguments of the network, as width_mult=0.5,dropout=0.1")
    activation: Activation | None = Field(None, description="activation of a built-in network, its own if not given")
    weights: str | None = Field(None, description="checkpoint to start from: a state dict or safetensors file")
    data: str = Field("digits", description="the data set (`ticket data` lists them), or package.module:function")
    data_dir: str | None = Field(None, description="folder to look for data in first")
    train_size: int | None = Field(
        None, ge=1, description="train on so many of the training samples, drawn by the split's seed; else on all"
    )
    density: float = Field(0.5, gt=0, le=1, allow_inf_nan=False, description="fraction of the maskable weights to keep")
    epochs: int = Field(12, ge=1, description="epochs of one training")
    batch_size: int = Field(128, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="update rule")
    lr: Positive = Field(0.1, description="learning rate at its highest")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    nesterov: bool = Field(False, description="Nesterov's momentum for sgd")
    weight_decay: NotNegative = Field(0.0, description="weight decay")
    schedule: Literal["constant", "cosine", "step"] = Field("constant", description="learning rate over time")
    milestones: Epochs = Field((), description="epochs at which the step schedule drops, as 80,120")
    drop: Positive = Field(0.1, description="factor of each drop of the step schedule")
    warmup: Duration = Field("0", description="linear rise of the learning rate from 0, as 500it or 2ep")
    image_size: int = Field(224, ge=1, description="side of the images of an image folder, in pixels")
    workers: int | None = Field(None, ge=0, description="processes that read an image folder")
    crop: int = Field(0, ge=0, description="augmentation: random crop after padding by so many pixels")
    flip: bool = Field(False, description="augmentation: mirror images at random")
    loss: str | None = Field(None, description="package.module:function of (logits, targets), else cross-entropy")
    metric: str | None = Field(
        None, description="package.module:function of (logits, targets) giving a score in [0, 1] each"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of cross-entropy")
    clip: Positive | None = Field(None, description="clip the norm of the gradient")
    accumulate: int = Field(1, ge=1, description="parts of a batch whose gradients are summed, to save memory")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32", description="of the forward pass; auto: what this device is made for"
    )
    channels_last: bool | None = Field(None, description="memory format of images; if not given, with bf16 only")
    compile: bool = Field(False, description="compile the training step with torch.compile")
    init: Init = Field("kaiming-normal", description="how weights are drawn; keep: as the model comes")
    evaluate_every: Duration = Field("1ep", description="how often to measure on validation, as 100it or 1ep")
    include: Words = Field((), description="globs of parameters to mask instead of the default set")
    exclude: Words = Field((), description="globs of parameters or layers to leave dense")
    seed: Seed = Field(0, description="of init, data order and masks, where those are not given")
    init_seed: Seed | None = Field(None, description="of the initial weights")
    order_seed: Seed | None = Field(None, description="of the data order")
    mask_seed: Seed | None = Field(None, description="of scores and random masks")
    split_seed: Seed = Field(0, description="of the validation split; the test split is fixed")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="where to train; auto: on the GPU where CUDA is there, else on the CPU"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; part of the result, bit for bit")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="type that the ticket's kept weights are rounded to; drawn weights need none"
    )

    @property
    def seeds(self) -> dict[str, int]:
        """The seeds of init, data order and masks, each `seed` unless it was given."""
        given = {"init": self.init_seed, "order": self.order_seed, "mask": self.mask_seed}
        return {name: self.seed if seed is None else seed for name, seed in given.items()}

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """What is wrong with the combination of flags; methods add to it. `given` are those that were asked for."""
        found = []
        if self.schedule == "step" and not self.milestones:
            found.append("--schedule step needs --milestones, as 80,120")
        if self.milestones and self.schedule != "step":
            found.append(f"--milestones goes with --schedule step, not {self.schedule}")
        if any(epoch >= self.epochs for epoch in self.milestones):
            found.append(f"--milestones {','.join(map(str, self.milestones))}: expected epochs before {self.epochs}")
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum > 0):
            found.append("--nesterov needs --optimizer sgd with --momentum above 0")
        if is_zero(self.evaluate_every):
            found.append("--evaluate-every 0: expected steps or epochs, like 100it or 1ep")
        if self.accumulate > self.batch_size:
            found.append(f"--accumulate {self.accumulate}: expected at most the {self.batch_size} samples of a batch")
        found += [f"--model-args {word}: expected NAME=VALUE" for word in self.model_args if "=" not in word]
        if self.weights and "init" in given and self.init != "keep":
            found.append(f"--weights starts from a checkpoint, --init {self.init} would draw over it: give one of them")
        idle = {
            "crop": self.data == "imagefolder" and "data in memory: an image folder has crops and flips of its own",
            "flip": self.data == "imagefolder" and "data in memory: an image folder has crops and flips of its own",
            "train_size": self.data == "imagefolder" and "data in memory",
            "image_size": self.data != "imagefolder" and "--data imagefolder",
            "workers": self.data != "imagefolder" and "--data imagefolder",
            "label_smoothing": self.loss is not None and "cross-entropy, not --loss",
            "momentum": self.optimizer != "sgd" and "--optimizer sgd",
            "drop": self.schedule != "step" and "--schedule step",
            "mask_seed": not self.draws_masks and "methods that draw scores or masks at random",
        }
        return found + [f"{flag(key)} goes with {wanted}" for key, wanted in idle.items() if wanted and key in given]


class ShapedConfig(Config):
    """The flags of methods that may keep N of every M weights: the density follows from N:M where it is not given."""

    granularity: str = Field("weight", description="what is kept as one: weight, or N of every M inputs, as 2:4")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _density_of_groups(cls, values: Any) -> Any:
        groups = groups_of(values.get("granularity")) if isinstance(values, dict) else None
        return {"density": groups[0] / groups[1], **values} if groups else values

    @property
    def group_density(self) -> float | None:
        """N / M where the granularity is N:M."""
        groups = groups_of(self.granularity)
        return groups[0] / groups[1] if groups else None

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """N:M has a density and an allocation of its own."""
        found = super().problems(given)
        if self.group_density is not None:
            if self.density != self.group_density:
                found.append(f"--granularity {self.granularity} keeps {self.group_density:g}: give that --density")
            if getattr(self, "allocation", None) not in (None, "layerwise"):
                found.append(f"--granularity {self.granularity} goes with --allocation layerwise")
        return found


def groups_of(granularity: Any) -> tuple[int, int] | None:
    """N and M of a granularity `N:M`, 1 <= N < M; None of any other."""
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", granularity) if isinstance(granularity, str) else None
    return (int(match[1]), int(match[2])) if match and 1 <= int(match[1]) < int(match[2]) else None


def flag(field: str) -> str:
    """A field's name as a flag: `batch_size` -> `--batch-size`."""
    return "--" + field.replace("_", "-")


def is_zero(duration: str) -> bool:
    """Whether a duration is 0 steps."""
    return int(DURATION.fullmatch(duration)[1]) == 0  # type: ignore[index]


def steps_of(duration: str, steps_per_epoch: int) -> int:
    """A duration in steps: `500it` -> 500, `2ep` -> twice the steps of an epoch."""
    match = DURATION.fullmatch(duration)
    assert match is not None, duration
    return int(match[1]) * (steps_per_epoch if match[2] == "ep" else 1)


def make_config(
    config_class: type[Config], values: Mapping[str, Any], given: Iterable[str] = (), typed: Iterable[str] = ()
) -> Config:
    """Validate values, text or typed, into a method's configuration.

    Args:
        config_class: the method's.
        values: by field name.
        given: the fields that were asked for; one that has no effect is a problem.
        typed: the fields whose values come from a file or from Python, where text is no number.

    Raises:
        RequestError: every unknown flag, wrong value and impossible combination.
    """
    problems = [
        f"{flag(name)} {values[name]!r}: expected a number or true or false, without quotes"
        for name in typed
        if isinstance(values.get(name), str) and not _takes_text(config_class, name)
    ]
    problems += [
        f"{flag(name)} {str(value).lower()}: expected a number"
        for name, value in values.items()
        if isinstance(value, bool) and name in config_class.model_fields and not _takes(config_class, name, bool)
    ]
    usable = dict(values)
    try:
        config = config_class.model_validate(usable)
    except pydantic.ValidationError as error:
        problems += [_sentence(item, config_class) for item in error.errors()]
        wrong = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        usable = {key: value for key, value in usable.items() if key not in wrong}
        config = config_class.model_validate(usable)
    problems += config.problems(frozenset(given))
    if problems:
        raise RequestError(problems)
    return config


def is_switch(entry: pydantic.fields.FieldInfo) -> bool:
    """Whether a field is a flag without a value, as `--flip` and `--no-flip`."""
    return bool in _kinds(entry.annotation)


def _takes(config_class: type[Config], name: str, kind: type) -> bool:
    return kind in _kinds(config_class.model_fields[name].annotation)


def _takes_text(config_class: type[Config], name: str) -> bool:
    return name not in config_class.model_fields or not _kinds(config_class.model_fields[name].annotation) & {
        bool, int, float,
    }  # fmt: skip


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) in (types.UnionType, Union):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    if hasattr(annotation, "__metadata__"):
        return _kinds(get_args(annotation)[0])
    return {annotation}


def _sentence(item: Any, config_class: type[Config]) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        return f"unknown flag {flag(name)}{nearest_hint(flag(name), map(flag, public_fields(config_class)))}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = message if item["type"] == "value_error" else f"expected {message}"
    return f"{flag(name)} {item['input']}: {expected}"


def public_fields(config_class: type[Config]) -> dict[str, pydantic.fields.FieldInfo]:
    """The fields that are flags: all but the method's name."""
    return {name: field for name, field in config_class.model_fields.items() if name != "method"}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        RequestError: a file that cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{path} cannot be read as TOML: {error}") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: a file that is no JSON.
    """
    value: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return value


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain values, without those that are not set."""
    return config.model_dump(mode="json", exclude_none=True)


def config_folders() -> list[Path]:
    """Where the recipes are: in the installed package, or beside it in a source checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def recipes() -> dict[str, Path]:
    """The recipes that ship with the package: `{name: file}`."""
    return {path.stem: path for folder in config_folders() for path in sorted(folder.glob("*.toml"))}


def studies() -> dict[str, Path]:
    """The studies that ship with the package: `{name: file}`."""
    return {path.stem: path for folder in config_folders() for path in sorted(folder.glob("studies/*.toml"))}


def find_study(name: str) -> Path:
    """The file of a study by its name or its path.

    Raises:
        RequestError: neither a study nor a file.
    """
    known = studies()
    if name in known:
        return known[name]
    if name.endswith(".toml") or Path(name).is_file():
        return Path(name)
    raise RequestError(unknown("study", name, known).replace("studys", "studies") + ", or the path of a .toml file")


def find_recipe(name: str) -> dict[str, Any]:
    """The values of a recipe by its name or its file.

    Raises:
        RequestError: neither a recipe nor a file.
    """
    known = recipes()
    if name in known:
        return read_toml(known[name])
    if name.endswith(".toml") or Path(name).is_file():
        return read_toml(name)
    raise RequestError(unknown("recipe", name, known) + ", or the path of a .toml file")


def differences(one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str] = ()) -> list[str]:
    """`--lr 0.1 there, 0.2 here` for each value that differs."""
    keys = names or sorted({*one, *other})
    return [
        f"{flag(key)} {one.get(key)} there, {other.get(key)} here" for key in keys if one.get(key) != other.get(key)
    ]
