"""What this machine has, what of it will be used, and what is missing, with the line that mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import platformdirs
import torch

import supermask
from supermask.kernels import build
from supermask.kernels.gpu import find

from ..contract.flags import Config
from ..contract.keyed import Keyed
from ..data.arrays import cache_dir, search_path
from ..runs.experiment import bf16_is_native, resolve

# Below so much room a search of a larger network, or of many levels, may not end.
_LITTLE_DISK = 2e9
_LITTLE_MEMORY = 2e9
_MEMINFO, _CPUINFO = Path("/proc/meminfo"), Path("/proc/cpuinfo")
# What Triton's kernels do.
_KERNELS = {"radix": "select the largest scores of all layers at once", "philox": "draw noise on the GPU"}
_DATA = ("fashion-mnist", "mnist", "cifar10", "cifar100")
# What extras bring, by the package that tells whether they are there.
_EXTRAS = {
    "mnist1d": ("mnist1d", "the data set mnist1d"),
    "onnx": ("onnx", "`ticket export --format onnx`, and onnxruntime in `ticket bench`"),
    "hub": ("huggingface_hub", "`ticket push`, and tickets at hf://"),
    "pandas": ("pandas", "`Comparison.frame()`"),
    "mlflow": ("mlflow-skinny", "`--log mlflow`"),
    "wandb": ("wandb", "`--log wandb`"),
}


@dataclass(frozen=True)
class Fact(Keyed):
    """One thing about the machine.

    `state` is `good`, `missing` where something would be faster or possible with it, or `told` where it is neither.
    `mend` is the line that gets what is missing, or an empty text.
    """

    topic: str
    what: str
    state: Literal["good", "missing", "told"] = "told"
    mend: str = ""

    def as_dict(self) -> dict[str, str]:
        """The fact as plain values."""
        return asdict(self)


def look_at_machine(runs: str = "runs") -> list[Fact]:
    """All that is known of this machine. It takes seconds: kernels are compiled and tried.

    Args:
        runs: the folder of runs, of whose disk the room is told.
    """
    return [*_versions(), *_processor(), *_devices(), *_compilers(), *_packages(), *_data(), *_disks(runs)]


def _versions() -> Iterator[Fact]:
    ours = f"supermask {supermask.__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield Fact("versions", ours)
    built = torch.version.cuda or torch.version.hip
    yield Fact("versions", f"PyTorch {torch.__version__}, built for {f'CUDA {built}' if built else 'CPUs'}")


def _processor() -> Iterator[Fact]:
    name = platform.processor() or platform.machine()
    if _CPUINFO.exists():
        lines = _CPUINFO.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield Fact("processor", f"{name}, {os.cpu_count()} cores, {capability}; PyTorch uses {threads} threads")
    if _MEMINFO.exists():
        found = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        free, whole = (1024 * int(found[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
        few = free < _LITTLE_MEMORY
        mend = "fewer --jobs, or a smaller --batch-size" if few else ""
        told = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB of memory are free"
        yield Fact("processor", told, "missing" if few else "good", mend)


def _devices() -> Iterator[Fact]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Apple's GPU is not taken, which is said here
        device = resolve(Config(method="dense")).device
    precision = "bf16" if bf16_is_native(device) else "fp32"
    yield Fact("device", f"--device auto is {device}, --precision auto is {precision} there", "good")
    if not torch.cuda.is_available():
        yield _why_no_gpu()
    for number in range(torch.cuda.device_count()):
        yield from _gpu(number)
    if torch.backends.mps.is_available():
        yield Fact("device", "Apple's GPU is there, on which no search has been tried: --device mps asks for it")


def _why_no_gpu() -> Fact:
    if not (torch.version.cuda or torch.version.hip):
        told = "no GPU is used: this PyTorch is built for CPUs"
        return Fact("device", told, "missing", "pip install --force-reinstall torch torchvision")
    if shutil.which("nvidia-smi") is None:
        return Fact("device", "no GPU is used: there is no NVIDIA driver here", "missing")
    told = "no GPU is used, though there is a driver: PyTorch cannot open it"
    return Fact("device", told, "missing", "nvidia-smi    # must list one, and CUDA_VISIBLE_DEVICES must not hide it")


def _gpu(number: int) -> Iterator[Fact]:
    device, about = torch.device("cuda", number), torch.cuda.get_device_properties(number)
    free, whole = (size / 1e9 for size in torch.cuda.mem_get_info(number))
    name = f"GPU {number}: {about.name}, compute capability {about.major}.{about.minor}"
    yield Fact("device", f"{name}, {free:.1f} of {whole:.1f} GB free", "good")
    yield Fact("device", f"cuDNN {torch.backends.cudnn.version()}")
    for kernel, does in _KERNELS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            works = find(kernel, device) is not None
        if works:
            yield Fact("device", f"Triton's kernels {does}", "good")
            continue
        why = f": {caught[-1].message}" if caught else ""
        lacking = importlib.util.find_spec("triton") is None
        mend = "pip install triton" if lacking else "pip install --upgrade torch triton"
        yield Fact("device", f"no kernels of Triton {does}, which plain PyTorch does more slowly{why}", "missing", mend)


def _compilers() -> Iterator[Fact]:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "", *build.COMPILERS))), None)
    mend = "apt-get install g++    # or set the environment variable CXX"
    if compiler is None:
        yield Fact(
            "compilers", "no C++ compiler: scores are selected and sparse rows multiplied more slowly", "missing", mend
        )
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            built = [name for name in ("cut", "csr", "noise") if build.build(name) is not None]
        works = len(built) == 3
        why = f": {caught[-1].message}" if caught else ""
        told = f"{compiler} builds {len(built)} of 3 kernels for this processor{why}"
        yield Fact("compilers", told, "good" if works else "missing", "" if works else mend)
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        yield Fact("compilers", "--compile is refused: torch.compile needs g++", "missing", mend)
    triton = _version_of("triton")
    yield Fact("compilers", f"Triton {triton}" if triton else "Triton is not installed: --compile on a GPU needs it")


def _packages() -> Iterator[Fact]:
    yield Fact("packages", f"TensorBoard {_version_of('tensorboard')}: tensorboard --logdir runs", "good")
    for extra, (package, brings) in _EXTRAS.items():
        version = _version_of(package)
        if version:
            yield Fact("packages", f"{package} {version}, for {brings}", "good")
        else:
            yield Fact(
                "packages", f"{package} is not installed, for {brings}", "missing", f'pip install "supermask[{extra}]"'
            )


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _data() -> Iterator[Fact]:
    yield Fact("data", "digits, which scikit-learn brings", "good")
    for name in _DATA:
        places = [folder / name for folder in search_path(None) if (folder / name).is_dir()]
        if places:
            yield Fact("data", f"{name}: {places[0]}", "good")
        else:
            told = f"{name} is on no disk here: it is downloaded when it is first asked for"
            yield Fact("data", told, "told", f"or put its files into {cache_dir() / name}")


def _disks(runs: str) -> Iterator[Fact]:
    cache = Path(platformdirs.user_cache_dir("supermask"))
    for what, folder in (("runs", Path(runs)), ("compiled kernels", cache)):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        few, writable = free < _LITTLE_DISK, os.access(there, os.W_OK)
        told = f"{what}: {free / 1e9:.1f} GB free in {folder}" + ("" if writable else ", which cannot be written to")
        yield Fact("disk", told, "good" if writable and not few else "missing", "" if not few else "make room")
