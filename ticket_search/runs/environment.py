"""What one needs to know to repeat a run, beside its configuration: versions, device and command."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch

import supermask

from ..contract.flags import Config
from . import ranks


def _gpu(device: str) -> dict[str, Any]:
    """The versions on which the bytes of a ticket depend where a GPU has trained it."""
    if device != "cuda":
        return {}
    return {
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
        "capability": list(torch.cuda.get_device_capability()),
        "deterministic": torch.backends.cudnn.deterministic,
    }


def _driver() -> str:
    """The version of the driver, where the system tells it."""
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return ""
    return next((word for word in path.read_text(errors="replace").split() if word[:1].isdigit() and "." in word), "")


def describe_environment(config: Config) -> dict[str, Any]:
    """What `environment.json` holds."""
    device = torch.cuda.get_device_name() if config.device == "cuda" else platform.processor() or platform.machine()
    return {
        "supermask": supermask.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        **_gpu(config.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": config.threads,
        **({"ranks": ranks.now().world} if ranks.now().several else {}),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
