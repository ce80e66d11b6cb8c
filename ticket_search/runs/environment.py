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
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": config.threads,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
