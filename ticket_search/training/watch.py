"""What is looked at while a network trains: a loss that is no number, a dead network, masks that do not hold, memory.

What makes the result worthless ends the run, before it can be saved over the state from before; what makes it doubtful
is told once, and kept in the summary. Nothing here is done in a step.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import supermask
from supermask.choosing.gradients import call
from supermask.live.program import program_of

from ..contract.errors import RunError
from ..contract.metric import Metric, is_guessing
from ..data.samples import Samples
from ..data.trees import part
from ..runs.experiment import own_random_numbers
from .evaluation import Evaluation
from .objective import Objective
from .outputs import main_output

# The outputs of a network count as the same for all samples if they vary by so little of their size.
_SAME = 1e-4
_LOOKED_AT = 32
# How near to guessing a network must be to be looked at.
_NEAR_GUESSING, _NEAR_LOSS = 1.5, 0.05
# So little of the memory is near its end.
_LITTLE_MEMORY = 0.03
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def bad_weights(model: nn.Module) -> list[str]:
    """The names of a network's parameters that hold NaN or infinity."""
    named = [(name, each.detach()) for name, each in model.named_parameters() if each.numel()]
    if not named:
        return []
    finite = torch.stack([torch.isfinite(each).all() for _, each in named]).tolist()
    return [name for (name, _), good in zip(named, finite, strict=True) if not good]


def is_near_guessing(objective: Objective, measured: Evaluation, classes: int) -> bool:
    """Whether a classifier does so little better than guessing that it may be dead."""
    if objective.kind != "cross-entropy" or classes < 2:
        return False
    near_loss = abs(measured.loss / math.log(classes) - 1) < _NEAR_LOSS
    return near_loss or (objective.metric.is_accuracy and measured.value < _NEAR_GUESSING * 100 / classes)


def has_learned_nothing(objective: Objective, loss: float, value: float, classes: int) -> bool:
    """Whether a classifier is in the end no better than guessing: by its accuracy, or by its loss without one.

    Args:
        objective: what was trained.
        loss: the mean loss on held-out samples.
        value: of the metric on them.
        classes: how many there are.
    """
    if objective.kind != "cross-entropy" or classes < 2:
        return False
    if objective.metric.is_accuracy:
        return is_guessing(value, classes)
    return loss > (1 - _NEAR_LOSS) * math.log(classes)


@torch.inference_mode()
def gives_one_output(model: nn.Module, data: Samples, objective: Objective) -> bool:
    """Whether the network gives the same output for different samples: no signal passes through it."""
    x, y = next(data.batches("validation", _LOOKED_AT))
    was_training = model.training
    model.eval()
    with own_random_numbers():
        outputs = main_output(call(model, objective.inputs(x, y)))
    model.train(was_training)
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or len(outputs) < 2 or _are_alike(x):
        return False
    outputs = outputs.float()
    spread = (outputs.amax(0) - outputs.amin(0)).max()
    return bool(spread <= _SAME * outputs.abs().max().clamp(min=1e-12))


def _are_alike(x: Any) -> bool:
    first, last = part(x, 0, 1), part(x, 1, 2)
    return isinstance(first, Tensor) and torch.equal(first, last)


def describe_dead(step: int, stage: str, measured: Evaluation, metric: Metric, classes: int, rate: float) -> str:
    """The sentence about a network that gives every sample the same output."""
    return (
        f"the network is dead at step {step} of {stage}: it gives every sample the same output (validation loss "
        f"{measured.loss:.4f}; that of guessing among {classes} classes is {math.log(classes):.4f}; validation "
        f"{metric.name} {metric.with_unit(measured.value)}). Either its masks let no signal pass, which a higher "
        f"--density or another --allocation mends, or the learning rate has killed it: lower --lr (now {rate:g})"
    )


def check_masks(model: nn.Module, step: int) -> None:
    """Check that held masks hold and learned ones are what they promise, where a model carries any.

    Raises:
        RunError: they do not, with the step.
    """
    if program_of(model) is None:
        return
    try:
        supermask.check(model)
    except ValueError as error:
        raise RunError(f"{error} (at step {step})") from None


def describe_memory() -> str:
    """What to say where memory is near its end; nothing where there is enough, or where that is not known."""
    known = _known()
    if not known:
        return ""
    free, whole = min(known)
    if free >= _LITTLE_MEMORY * whole:
        return ""
    return (
        f"memory is near its end: {free / 1e6:,.0f} of {whole / 1e6:,.0f} MB are free, and a process that needs more "
        "is killed; fewer --jobs or a smaller --batch-size need less, and `ticket resume` goes on with a killed run"
    )


def free_memory(device: str) -> int | None:
    """The bytes that are free on a device, None where that is not known."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    known = _known() if device == "cpu" else []
    return min(known)[0] if known else None


def _known() -> list[tuple[int, int]]:
    return [both for both in (_of_the_machine(), _of_the_group()) if both is not None]


def _of_the_machine() -> tuple[int, int] | None:
    """Free and whole memory of the machine in bytes, where Linux tells them."""
    if not _MEMINFO.exists():
        return None
    found = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    if not {"MemAvailable", "MemTotal"} <= found.keys():
        return None
    free, whole = (1024 * int(found[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
    return free, whole


def _of_the_group() -> tuple[int, int] | None:
    """The same of the control group, as of a container or a Slurm job, where it has a limit."""
    numbers = []
    for name in ("memory.max", "memory.current"):
        path = _CGROUP / name
        if not path.exists() or not (text := path.read_text().strip()).isdecimal():
            return None
        numbers.append(int(text))
    whole, used = numbers
    return max(0, whole - used + _reclaimable()), whole


def _reclaimable() -> int:
    """Bytes of the control group that the file cache holds, which are given up where they are needed."""
    path = _CGROUP / "memory.stat"
    if not path.exists():
        return 0
    found = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
    return int(found.get("inactive_file", 0)) + int(found.get("active_file", 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory: PyTorch has a class for it on a GPU only."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def describe_out_of_memory(error: BaseException, batch_size: int, resumes: str) -> str:
    """The sentence about a training that has run out of memory."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"out of memory: {first}. A smaller --batch-size (now {batch_size}), or --accumulate N, which passes a batch "
        f"in N parts, needs less; where another process has taken the memory, `{resumes}` goes on"
    )
