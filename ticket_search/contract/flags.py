"""What a run is told: the flags that all methods share, how they are checked and recorded. Imports no torch."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, WrapValidator

from supermask.masks.texts import harmless

from .errors import Problems, describe_expected, unknown_flag
from .leave import Leave, code_in, refuse, without_leave
from .metric import LOSSES, METRICS, name_problem
from .other_names import meant_fractions, meant_value
from .recorded import always_recorded

DURATION = re.compile(r"(\d+)(it|ep)?")
Activation = Literal["relu", "gelu", "leaky-relu", "tanh", "identity"]
Init = Literal["kaiming-normal", "kaiming-uniform", "signed-constant", "unsigned-constant", "xavier-normal", "keep"]


def _check_duration(text: str) -> str:
    match = DURATION.fullmatch(text)
    if match is None or (match[2] is None and int(match[1]) != 0):
        raise ValueError("expected steps or epochs, like 500it or 2ep, or 0")
    return text


def _check_gain(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except pydantic.ValidationError:
        raise ValueError(f"expected {', '.join(get_args(Activation))}, or a positive number") from None


def split_words(value: Any) -> Any:
    """Words between commas, and a list, as a tuple; anything else as it is."""
    if isinstance(value, str):
        return tuple(word for word in value.split(",") if word)
    return tuple(value) if isinstance(value, list) else value


def _check_colours(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) != 3:
        raise ValueError("expected three numbers between commas, of red, green and blue")
    return value


Duration = Annotated[
    str, BeforeValidator(lambda value: str(value) if value == 0 else value), AfterValidator(_check_duration)
]
# Of ImageNet's pixels / 255, red, green, blue: what photographs are commonly normalized by.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Gain = Annotated[Activation | Positive, WrapValidator(_check_gain)]
Words = Annotated[tuple[str, ...], BeforeValidator(split_words)]
Loggers = Annotated[tuple[Literal["mlflow", "wandb"], ...], BeforeValidator(split_words)]
Epochs = Annotated[tuple[pydantic.PositiveInt, ...], BeforeValidator(split_words)]
Means = Annotated[tuple[Finite, ...], BeforeValidator(split_words), AfterValidator(_check_colours)]
Deviations = Annotated[tuple[Positive, ...], BeforeValidator(split_words), AfterValidator(_check_colours)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(pydantic.BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """The flags that all methods share. Each method adds its own, and may set other defaults.

    A flag that is added has a default, which is never changed later (see `recorded`), and which is None where its value
    may be None: a record cannot say None.
    """

    draws_masks: ClassVar[bool] = False
    # Whether weights of --weights are pruned as they are, without a training before.
    from_checkpoint: ClassVar[bool] = False
    # Not of the record: which of its names may be imported, and who names the others. Copies keep both.
    _leaves: dict[str, Leave] = pydantic.PrivateAttr(default_factory=dict)
    _origin: str = pydantic.PrivateAttr("the configuration, which is not what you have typed")

    method: str = Field("", description="search method (`ticket methods` lists them)")
    model: str = Field(
        "lenet-300-100",
        description="network: a built-in name (`ticket models` lists them), torchvision:NAME, timm:NAME, "
        "transformers:CLASS, or package.module:function",
    )
    model_args: Words = Field((), description="arguments that the network is built with, as width=0.5,dropout=0.1")
    activation: Activation | None = Field(
        None, description="activation function of a built-in network, in place of its usual one"
    )
    weights: str | None = Field(
        None,
        description="start from the weights in this checkpoint: a state dict or a safetensors file, or FILE#KEY where "
        "one file holds several state dicts; or from the final weights of a finished run, given by its folder or its "
        "ticket file, or hf:USER/NAME, a ticket on the hub: those that the ticket dropped start at zero, and what "
        "the run has cost counts in the cost of this search; {seed} in it stands for the run's own seed, as in "
        "runs/dense-s{seed}",
    )
    data: str = Field(
        "digits", description="data set: a built-in name (`ticket data` lists them), or package.module:function"
    )
    data_dir: str | None = Field(None, description="folder in which the data set is looked for first")
    train_size: int | None = Field(
        None,
        ge=1,
        description="train on a subset of N training samples, drawn with --split-seed, instead of on all of them",
    )
    density: float = Field(
        0.5, gt=0, le=1, allow_inf_nan=False, description="fraction of the maskable weights that is kept"
    )
    epochs: int = Field(12, ge=1, description="number of epochs of each training")
    batch_size: int = Field(128, ge=1, description="number of samples in a training step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="optimizer that updates the weights")
    lr: Positive = Field(0.1, description="learning rate after warmup, which the schedule may lower")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="use Nesterov momentum in SGD")
    weight_decay: NotNegative = Field(0.0, description="weight decay of the optimizer")
    schedule: Literal["constant", "cosine", "step"] = Field(
        "constant", description="how the learning rate changes in the course of a training"
    )
    milestones: Epochs = Field((), description="epochs at which the step schedule lowers the rate, as 80,120")
    drop: Positive = Field(0.1, description="factor that the step schedule multiplies the rate by at a milestone")
    warmup: Duration = Field(
        "0", description="how long the learning rate first rises linearly from 0 to --lr, as 500it or 2ep"
    )
    image_size: int = Field(
        224, ge=1, description="height and width, in pixels, that images of an image folder are resized and cropped to"
    )
    image_mean: Means = Field(
        IMAGENET_MEAN,
        description="what is subtracted from red, green and blue, between 0 and 1, of the images of an image folder; "
        "ImageNet's means if not given",
    )
    image_std: Deviations = Field(
        IMAGENET_STD,
        description="what red, green and blue of the images of an image folder are then divided by; ImageNet's "
        "standard deviations if not given",
    )
    workers: int | None = Field(None, ge=0, description="number of processes that load images from an image folder")
    max_bad_images: int | None = Field(
        None,
        ge=0,
        description="how many images of each split of an image folder may be such as cannot be read: in training "
        "another of its class takes the place of each, validation and test leave it out; if not given, 1 % of the "
        "split, and one at least",
    )
    crop: int = Field(
        0, ge=0, description="augmentation: pad each training image by N pixels and cut it out at a random offset"
    )
    flip: bool = Field(False, description="augmentation: mirror each training image with probability 1/2")
    loss: str | None = Field(
        None,
        description="loss to minimize: cross-entropy, mse, bce (labels that are on or off), model (the loss that the "
        "network gives itself), or package.module:function of (outputs, targets), a mean; if not given, the network's "
        "own where it has one, else cross-entropy, which labels of whole numbers have and numbers to predict have not: "
        "name mse or bce for those",
    )
    metric: str | None = Field(
        None,
        description="what is reported: accuracy, r2, perplexity, mse, mae, or package.module:function of (outputs, "
        "targets), a number for each sample, whose attributes direction (higher or lower) and unit say what it is; if "
        "not given, what goes with the loss: accuracy, of mse r2, of language models perplexity",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy loss")
    clip: Positive | None = Field(None, description="scale the gradient down where its norm is larger than this")
    fsdp: bool = Field(
        False,
        description="on several GPUs (torchrun): share out weights, gradients and moments over them (FSDP2), for "
        "networks whose training does not fit on one; with methods that hold masks",
    )
    accumulate: int = Field(
        1, ge=1, description="split each batch into N parts and sum their gradients, to save memory"
    )
    precision: Literal["fp32", "bf16", "fp64", "auto"] = Field(
        "fp32",
        description="number format of the forward pass; fp64 is that of the weights too; auto means bf16 where the "
        "hardware supports it, else fp32",
    )
    channels_last: bool | None = Field(
        None, description="use the channels-last memory format for images; if not given, only with bf16"
    )
    compile: bool = Field(False, description="compile the training step with torch.compile")
    init: Init = Field(
        "kaiming-normal", description="how the initial weights are drawn; keep leaves them as the model was built"
    )
    init_gain: Gain | None = Field(None, description="gain of --init: that of an activation, by its name, or a number")
    evaluate_every: Duration = Field(
        "1ep", description="how often a training is evaluated on the validation split, as 100it or 1ep"
    )
    include: Words = Field(
        (), description="mask only the parameters whose names match these patterns, as fc1,*.head.weight"
    )
    exclude: Words = Field((), description="leave dense the parameters or layers whose names match these patterns")
    seed: Seed = Field(
        0, description="seed of the initial weights, the data order and random masks; each can have its own"
    )
    init_seed: Seed | None = Field(None, description="seed of the initial weights, if not --seed")
    order_seed: Seed | None = Field(None, description="seed of the data order and augmentation, if not --seed")
    mask_seed: Seed | None = Field(None, description="seed of initial scores and random masks, if not --seed")
    split_seed: Seed = Field(
        0, description="seed that draws the validation split from the training set; the test set is fixed"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="device to train on; auto takes the GPU where there is CUDA, else the CPU"
    )
    threads: int | None = Field(
        None, ge=1, description="number of CPU threads; tickets are equal bit for bit only for the same number"
    )
    log: Loggers = Field(
        (),
        description="where the numbers of the run go beside TensorBoard: mlflow, wandb, or both as mlflow,wandb; their "
        "own environment variables say to which server and project",
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="number format in which a ticket stores the kept weights that no seed draws"
    )

    @property
    def leaves(self) -> Mapping[str, Leave]:
        """The names of code that may be imported, with where they come from."""
        return self._leaves

    @property
    def origin(self) -> str:
        """Who names the code that there is no leave for, and why not: `the run runs/x, which has no mark ...`."""
        return self._origin

    def allowing(self, leaves: Mapping[str, Leave], origin: str = "") -> Self:
        """The same configuration with leave to import more names, and, where it is given, another origin."""
        copy = self.model_copy()
        copy._leaves = {**self._leaves, **leaves}
        copy._origin = origin or self._origin
        return copy

    def refused_code(self, others: Mapping[str, Any] | None = None) -> list[str]:
        """The sentences about code that may not be imported: what it names, or `others` in place of that, by flag."""
        names = code_in({**vars(self), **(others or {})})
        denied = without_leave(names, self._leaves)
        return refuse(self._origin, denied) if denied else []

    @property
    def seeds(self) -> dict[str, int]:
        """The seeds of init, data order and masks, each `seed` unless it was given."""
        given = {"init": self.init_seed, "order": self.order_seed, "mask": self.mask_seed}
        return {name: self.seed if seed is None else seed for name, seed in given.items()}

    @property
    def weights_given(self) -> str | None:
        """What `weights` says for this run's seed."""
        return None if self.weights is None else self.weights.replace("{seed}", str(self.seed))

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """What is wrong with the combination of flags; methods add to it.

        `given` are the flags that were asked for: one of them that would have no effect is a problem.
        """
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
        names = (("--loss", self.loss, LOSSES), ("--metric", self.metric, tuple(METRICS)))
        found += [problem for key, name, own in names if name is not None and (problem := name_problem(key, name, own))]
        if self.fsdp and self.compile:
            found.append("--fsdp and --compile: what is shared out is not compiled, give one of them")
        if self.accumulate > self.batch_size:
            found.append(f"--accumulate {self.accumulate}: expected at most the {self.batch_size} samples of a batch")
        found += [f"--model-args {word}: expected NAME=VALUE" for word in self.model_args if "=" not in word]
        if self.weights and "init" in given and self.init != "keep":
            found.append(
                f"--weights starts from the weights of a checkpoint, --init {self.init} would draw over it: "
                "give one of them"
            )
        idle = {
            "crop": self.data == "imagefolder" and "data in memory: an image folder has its own augmentation",
            "flip": self.data == "imagefolder" and "data in memory: an image folder has its own augmentation",
            "train_size": self.data == "imagefolder" and "data in memory",
            **dict.fromkeys(
                ("image_size", "image_mean", "image_std", "workers", "max_bad_images"),
                self.data != "imagefolder" and "--data imagefolder",
            ),
            "label_smoothing": self.loss not in (None, "cross-entropy") and f"cross-entropy, not --loss {self.loss}",
            "momentum": self.optimizer != "sgd" and "--optimizer sgd",
            "drop": self.schedule != "step" and "--schedule step",
            "init_gain": self.init == "keep" and "an init that draws the weights, not --init keep",
            "mask_seed": not self.draws_masks and "methods that draw scores or masks at random",
        }
        return found + [f"{flag(key)} goes with {wanted}" for key, wanted in idle.items() if wanted and key in given]


class ShapedConfig(Config):
    """The flags of methods that can keep N of every M weights. N:M sets the density where that is not given."""

    granularity: str = Field(
        "weight", description="what is kept or dropped as one: weight, or N:M, which keeps N of every M inputs, as 2:4"
    )

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
        """N:M says what the density and the allocation are, so that no flag may say otherwise."""
        found = super().problems(given)
        if self.group_density is not None:
            if self.density != self.group_density:
                found.append(f"--granularity {self.granularity} keeps {self.group_density:g}: give that --density")
            if getattr(self, "allocation", None) not in (None, "layerwise"):
                found.append(f"--granularity {self.granularity} goes with --allocation layerwise")
        return found


def groups_of(granularity: Any) -> tuple[int, int] | None:
    """N and M of a granularity `N:M` with 1 <= N < M, and None for any other."""
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
    """Check values and join them into a method's configuration.

    Args:
        config_class: the class of the method's configuration.
        values: the values by field name, as text or as what they are.
        given: the fields that were asked for; one of them that would have no effect is a problem.
        typed: the fields whose values come from a file, where text is no number.

    Raises:
        RequestError: every unknown flag, wrong value and impossible combination.
    """
    problems = Problems()
    problems.add(
        *(
            f"{flag(name)} {values[name]!r}: expected a number or true or false, without quotes"
            for name in typed
            if isinstance(values.get(name), str) and not _takes_text(config_class, name)
        )
    )
    problems.add(
        *(
            f"{flag(name)} {str(value).lower()}: expected a number"
            for name, value in values.items()
            if isinstance(value, bool) and name in config_class.model_fields and not _takes(config_class, name, bool)
        )
    )
    usable = dict(values)
    try:
        config = config_class.model_validate(usable)
    except pydantic.ValidationError as error:
        problems.add(*(_sentence(item, config_class, values) for item in error.errors()))
        # The values that are right are checked with one another all the same.
        wrong = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        usable = {key: value for key, value in usable.items() if key not in wrong}
        config = config_class.model_validate(usable)
    problems.add(*config.problems(frozenset(given)))
    problems.raise_if_any()
    return config


def is_switch(entry: pydantic.fields.FieldInfo) -> bool:
    """Whether a field is a flag that takes no value, as `--flip` and `--no-flip` do."""
    return bool in _kinds(entry.annotation)


def _takes(config_class: type[Config], name: str, kind: type) -> bool:
    return kind in _kinds(config_class.model_fields[name].annotation)


def _takes_text(config_class: type[Config], name: str) -> bool:
    numbers = {bool, int, float, types.NoneType}
    return name not in config_class.model_fields or not _kinds(config_class.model_fields[name].annotation) <= numbers


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) in (types.UnionType, Union):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    if hasattr(annotation, "__metadata__"):
        return _kinds(get_args(annotation)[0])
    return {annotation}


def _sentence(item: Any, config_class: type[Config], values: Mapping[str, Any]) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        return unknown_flag(flag(name), map(flag, public_fields(config_class)))
    whole = values.get(name)
    if len(item["loc"]) > 1 and (told := meant_fractions(split_words(whole), item)):
        return f"{flag(name)} {','.join(map(str, split_words(whole)))}: {told}"
    entry = config_class.model_fields.get(name)
    bounds = [getattr(each, key, None) for each in (entry.metadata if entry else ()) for key in ("le", "lt")]
    trained = config_class.from_checkpoint if values.get("weights") else None
    hint = meant_value(name, item["input"], 1 in bounds, trained)
    return f"{flag(name)} {harmless(str(item['input']), 200)}: {describe_expected(item)}{hint}"


def public_fields(config_class: type[Config]) -> dict[str, pydantic.fields.FieldInfo]:
    """The fields that are flags, by name: all but that of the method's name."""
    return {name: field for name, field in config_class.model_fields.items() if name != "method"}


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as a run's folder and its ticket record it: plain values by field name.

    Flags that are not set are left out, and so are those that are newer than version 0.1 and have their default.
    """
    always = always_recorded(config.method)
    plain: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in plain.items() if name in always or not _is_default(config, name)}


def _is_default(config: Config, name: str) -> bool:
    """Whether a flag has its default: of the method, and of what it shares with others, for whom the record is too."""
    family = [kind for kind in type(config).__mro__ if issubclass(kind, Config) and name in kind.model_fields]
    defaults = [kind.model_fields[name].get_default(call_default_factory=True) for kind in family]
    return all(getattr(config, name) == default for default in defaults)


def differs_from(record: Mapping[str, Any], config: Config) -> list[str]:
    """What a recorded configuration has otherwise: `--lr 0.1 there, 0.2 here` for each flag that differs.

    A flag that either of them does not name has its default there. Where a run is logged to makes no other run of it.
    """
    defaults = type(config).model_construct().model_dump(mode="json", exclude_none=True)
    both = {**defaults, **record}, {**defaults, **to_plain(config)}
    return differences(*both, names=sorted({*both[0], *both[1]} - {"log"}))


def differences(one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str] = ()) -> list[str]:
    """`--lr 0.1 there, 0.2 here` for each value that differs, or for those of `names` only."""
    keys = names or sorted({*one, *other})
    return [
        f"{flag(key)} {one.get(key)} there, {other.get(key)} here" for key in keys if one.get(key) != other.get(key)
    ]
