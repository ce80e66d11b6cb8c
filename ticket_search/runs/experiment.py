"""What a search works on: the network and the data, resolved from names or from the caller's own objects."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

import supermask
from supermask import Draw, choosing
from supermask.choosing.gradients import seed_generators
from supermask.masks.targets import Targets
from supermask.weights.architectures import find_architecture

from ..contract.errors import RequestError, some_of
from ..contract.flags import Config
from ..contract.leave import Leaves, describe_function
from ..contract.method import Method
from ..contract.metric import ACCURACY, Metric
from ..data import checks
from ..data.augmentation import Augmentation
from ..data.dataset import Data, from_arrays
from ..data.examples import floats, form_of
from ..data.factories import find_factory, load_factory
from ..data.folder import count_processors
from ..data.images import BadImages
from ..data.samples import Samples
from ..data.sources import read_samples
from ..data.trees import to_lists
from ..models.checkpoints import load_tensors
from ..models.names import is_factory
from . import ranks
from .earlier_run import EarlierRun, read_weights
from .loggers.logger import check_installed


@dataclass
class Setup:
    """A search's network and data. `build()` gives the network as it comes.

    `functions` are the loss and the metric that were given in Python, by those names; `factory` is what builds the
    network, where that is code of the caller's own. `draws` says how the newest
    network was initialized, `parameters` how many numbers it has, `earlier` which run of ours has trained the weights
    that it starts from, if one has. `metric` and `objective` are set when the first batch has shown what the task is
    (see `training.trial`).
    """

    method: Method
    data: Samples
    architecture: dict[str, Any]
    build: Callable[[], nn.Module]
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    draws: dict[str, Draw] = field(default_factory=dict)
    parameters: int = 0
    earlier: EarlierRun | None = None
    metric: Metric = ACCURACY
    objective: Any = None
    factory: Callable[..., nn.Module] | None = None

    @property
    def data_fingerprint(self) -> str:
        """That of the data, where a function of one's own gives them, which may give others the next time."""
        return str(getattr(self.data, "fingerprint", "")) if ":" in self.data.name else ""

    @property
    def content(self) -> str | dict[str, str]:
        """What tells the data from others: a fingerprint of what a function of one's own gives, else a text by part."""
        return self.data_fingerprint or dict(getattr(self.data, "contents", {}))

    def differences(self, before: str | Mapping[str, str]) -> str:
        """How the data differ from those of which `content` was something else, in words."""
        now = self.content
        if isinstance(before, str) or isinstance(now, str):
            return f"{self.data.name} must give the same each time"
        changed = [part for part in {**before, **now} if before.get(part) != now.get(part)]
        some = [f"{part} was {before.get(part, 'not there')} and is {now.get(part, 'gone')}" for part in changed]
        return some_of(some, 3)

    @property
    def data_hash(self) -> str:
        """A hash of that; empty where the samples have none."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest() if self.content else ""

    @property
    def bad_images(self) -> BadImages | None:
        """The images of a folder that could not be read so far; None where the data are in memory."""
        return getattr(self.data, "bad", None)

    @cached_property
    def sample(self) -> dict[str, Any]:
        """What a ticket records of the samples: their form, where it is not that of floats of a shape that the network
        was built for.
        """
        form = form_of(self.data)
        return {} if form == floats(self.architecture["arguments"].get("input_shape")) else {"sample": form}

    @contextlib.contextmanager
    def using(self, data: Samples) -> Iterator[None]:
        """Within it a search trains on other samples, and is measured with them: those of one of several tasks."""
        before, self.data = self.data, data
        try:
            yield
        finally:
            self.data = before

    def make_model(self, config: Config) -> nn.Module:
        """The network at initialization, on the configured device. The same seed gives the same weights."""
        seed = config.seeds["init"]
        with own_random_numbers():
            seed_generators(seed)
            model = self.build()
        if given := config.weights_given:
            tensors, self.earlier = read_weights(given)
            load_tensors(model, tensors, given)
        if config.init != "keep" and self.method.traits.trains_weights:
            self.draws = supermask.initialize(model, config.init, seed, gain=config.init_gain)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        return model.to(config.device)

    def targets(self, config: Config, model: nn.Module) -> Targets:
        """The tensors that may carry a mask.

        Raises:
            RequestError: a glob that fits nothing, or a model without targets.
        """
        try:
            return supermask.find_targets(model, config.include or None, config.exclude or None)
        except ValueError as error:
            raise RequestError(str(error)) from None

    def remarks(self, model: nn.Module, targets: Targets) -> list[str]:
        """What to know of the network's tensors before work begins: left out, shared, frozen, never read, zero."""
        example, _ = next(self.data.batches("validation", 2))
        found = choosing.remarks.sentences(supermask.remarks(model, targets, example))
        return found + (self.earlier.remarks() if self.earlier else []) + _remarks_on_norms(model)


def _remarks_on_norms(model: nn.Module) -> list[str]:
    """What to know of batch norms where several ranks train."""
    group = ranks.now()
    if not group.several or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return []
    return [
        f"batch norm takes its statistics from the rows that each of the {group.world} ranks has of a batch, and those "
        "that are kept are the first rank's"
    ]


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Leave the caller's global random numbers as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def exact_arithmetic(config: Config) -> Iterator[None]:
    """The configured number of threads, and fp32 that is fp32: no TF32, no algorithm chosen by timing.

    On a GPU the same command gives the same bytes: what sums in an order of its own is not taken.
    """
    cudnn, attention = torch.backends.cudnn, torch.backends.cuda
    before = (torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic)
    gpu = config.device == "cuda"
    kernels = attention.flash_sdp_enabled(), attention.mem_efficient_sdp_enabled(), attention.cudnn_sdp_enabled()
    filling: Any = torch.utils.deterministic
    fills = filling.fill_uninitialized_memory
    modes = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_num_threads(config.threads or before[0])
        cudnn.benchmark, cudnn.deterministic = False, True
        if gpu:
            # cuBLAS reads it when it is first opened.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # What has no other way than one whose order is its own goes on, with PyTorch's warning. The compiler
            # follows, and chooses no kernel by timing.
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Nothing reads memory that it has not written; to fill it would be a kernel for each tensor.
            filling.fill_uninitialized_memory = False
            # The backward passes of these sum by atomic additions; that of flash attention too, where it only warns.
            attention.enable_flash_sdp(False)
            attention.enable_mem_efficient_sdp(False)
            attention.enable_cudnn_sdp(False)
        with _whole_fp32():
            yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]
        if gpu:
            torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])
            filling.fill_uninitialized_memory = fills
            attention.enable_flash_sdp(kernels[0])
            attention.enable_mem_efficient_sdp(kernels[1])
            attention.enable_cudnn_sdp(kernels[2])


@contextlib.contextmanager
def _whole_fp32() -> Iterator[None]:
    """No product of fp32 numbers in fewer bits, on no device; what the caller had set is put back.

    PyTorch has two ways to ask for fewer bits. Where the caller has used the newer one (`fp32_precision`), reading the
    older one (`allow_tf32`) raises.
    """
    cudnn, matmul, mkldnn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
    # PyTorch before 2.9 has only the older way.
    kinds: list[Any] = [matmul, *(getattr(each, key, None) for each in (cudnn, mkldnn) for key in ("conv", "rnn"))]
    places = [place for place in (*kinds, getattr(mkldnn, "matmul", None)) if hasattr(place, "fp32_precision")]
    before = [place.fp32_precision for place in places]
    try:
        older = cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    try:
        if older is None:
            for place in places:
                place.fp32_precision = "ieee"
        else:
            cudnn.allow_tf32 = matmul.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if older is not None:
            cudnn.allow_tf32, matmul.allow_tf32 = older[:2]
            torch.set_float32_matmul_precision(older[2])
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def devices() -> dict[str, bool]:
    """Which devices this machine has, of those that a run may be trained on."""
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def resolve(config: Config) -> Config:
    """The configuration with `auto` and defaults of the machine replaced by what they mean here.

    Raises:
        RequestError: a device or a compiler that this machine does not have.
    """
    check_installed(config.log)
    available = devices()
    device = config.device
    if device == "auto":
        device = "cuda" if available["cuda"] else "cpu"
        if available["mps"] and not available["cuda"]:
            warnings.warn(
                "--device auto trains on the CPU: on Apple's GPU (mps) no search has been tried yet; --device mps asks "
                "for it",
                stacklevel=2,
            )
    if not available[device]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise RequestError(f"--device {device}: this machine has {there}")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and shutil.which(compiler) is None:
        raise RequestError(
            f"--compile needs a C++ compiler, and {compiler} is not on the PATH: install g++, or set CXX"
        )
    if config.precision == "fp64" and device == "mps":
        raise RequestError("--precision fp64: Apple's GPUs have no float64; expected --device cpu")
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if bf16_is_native(device) else "fp32"
    channels_last = precision == "bf16" if config.channels_last is None else config.channels_last
    # The first rank says for all: bytes depend on it.
    threads = config.threads or ranks.tell(torch.get_num_threads())
    found = {"device": device, "threads": threads, "precision": precision, "channels_last": channels_last}
    return config.model_copy(update=found)


def bf16_is_native(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware. By capability, never by timing: a run must repeat."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def describe_model(model: str | Callable[..., nn.Module]) -> str:
    """The name of a model in the configuration: its own, or `module:function` of a callable."""
    if isinstance(model, str):
        return model
    if not callable(model) or isinstance(model, nn.Module):
        raise RequestError(
            f"model is {type(model).__name__}, expected a name or a callable that builds a new module each time, "
            "as model=lambda: MyNet()"
        )
    return describe_function(model)


def load_data(data: Any, config: Config) -> Samples:
    """Samples of a built-in set's name, of what `package.module:function` gives, or of the caller's arrays or Dataset.

    `config.train_size` of the training samples, where it says how many.

    Raises:
        RequestError: an unknown name, data that cannot be had, or that does not fit.
    """
    found = _all_samples(data, config)
    if not isinstance(found, Data):
        if config.precision == "fp64":
            raise RequestError(f"--precision fp64: {found.name} is streamed in float32; expected data in memory")
        return found
    if config.train_size:
        found = found.first(config.train_size, config.split_seed)
    for sentence in checks.remarks(found.name, found.parts, found.classes):
        warnings.warn(sentence, stacklevel=2)
    return found.double() if config.precision == "fp64" else found


def _all_samples(data: Any, config: Config) -> Samples:
    augmentation = Augmentation(config.crop, config.flip)
    if isinstance(data, str) and ":" not in data:
        group, workers = ranks.now(), config.workers
        if workers is None and group.several:
            workers = max(1, count_processors() // group.local_world)
        return read_samples(
            data, config.data_dir, config.split_seed,
            augmentation=augmentation, image_size=config.image_size, image_mean=config.image_mean,
            image_std=config.image_std, workers=workers, max_bad_images=config.max_bad_images,
        )  # fmt: skip
    given = load_factory(data, config.leaves) if isinstance(data, str) else data
    if isinstance(given, Data):
        checks.check_parts(given.name, given.parts, given.classes)
    found = given if isinstance(given, Data) else from_arrays(given, config.split_seed, config.loss == "cross-entropy")
    if isinstance(data, str):
        _check_content(data, config.leaves[data].content, found.fingerprint)
        return replace(found, augmentation=augmentation, name=data)
    return replace(found, augmentation=augmentation)


def _check_content(data: str, expected: str, content: str) -> None:
    """Check that a function gives the samples that it gave when the run was started."""
    if expected and content != expected:
        raise RequestError(
            f"{data} gives other samples than when the run was started: what it reads or does has changed since; "
            f"--data {data} takes them as they are"
        )


def find_model(model: str | Callable[..., nn.Module], leaves: Leaves) -> Callable[..., nn.Module]:
    """The factory of a network: by name, by `package.module:function` if there is leave for it, or the callable itself.

    Raises:
        RequestError: there is none.
    """
    if not isinstance(model, str):
        return model
    if is_factory(model):
        return find_factory(model, leaves)
    try:
        return find_architecture(model)
    except ValueError as error:
        raise RequestError(str(error)) from None


def make_setup(
    method: Method,
    model: str | Callable[..., nn.Module],
    data: Samples,
    config: Config,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Setup:
    """Join a method, a model, data, and the loss and the metric that were given as functions.

    A factory gets `input_shape`, `classes` and `activation` if it takes arguments of these names, and all model
    arguments. `classes` is how many numbers it is to give: classes, of tokens the size of the vocabulary, or columns of
    float targets. Of inputs that are a tuple or a dictionary `input_shape` is that of all of them.

    Raises:
        RequestError: an activation or an argument that the network does not take.
    """
    name, factory = describe_model(model), find_model(model, config.leaves)
    takes = inspect.signature(factory).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    asked: dict[str, Any] = dict(map(_read_argument, config.model_args))
    if config.activation:
        asked["activation"] = config.activation
    if refused := [key for key in asked if not (takes_all or key in takes)]:
        raise RequestError(f"the network {name} does not take {', '.join(refused)}; it takes {', '.join(takes)}")
    offered: dict[str, Any] = {"input_shape": to_lists(data.input_shape)}
    offered |= {"classes": data.classes} if data.classes else {}
    arguments = {key: value for key, value in offered.items() if key in takes} | asked

    def build() -> nn.Module:
        try:
            network = factory(**arguments)
        except Exception as error:
            problem = f"the network {name} cannot be built: {type(error).__name__}: {error}"
            if not isinstance(data.input_shape, tuple) or not all(isinstance(each, int) for each in data.input_shape):
                problem += f"; a sample of {data.name} is several tensors, of shapes {to_lists(data.input_shape)}"
            raise RequestError(problem) from error
        if not isinstance(network, nn.Module):
            raise RequestError(f"the model {name} gave {type(network).__name__}, expected a torch.nn.Module")
        return network.double() if config.precision == "fp64" else network

    architecture = {"name": name, "arguments": arguments}
    return Setup(method, data, architecture, build, functions or {}, factory=factory)


def _read_argument(word: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
