"""Weights from a file: a state dict saved by torch, or safetensors, as `FILE` or, of several in a file, `FILE#KEY`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from supermask.masks.targets import unwrap
from supermask.tickets import foreign
from supermask.tickets.header import most_weights
from supermask.weights.fitting import first_names, plain_tensors, set_state

from ..contract.errors import RequestError, nearest_hint

# So many tensors of each kind that do not fit are told, and of more their number.
_TOLD = 5


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by plain name. No code in it is run.

    Raises:
        RequestError: a file that cannot be read as a state dict.
    """
    file, _, key = (path, "", "") if Path(path).exists() else path.partition("#")
    try:
        found = foreign.read_file(file)
    except OSError as error:
        raise RequestError(f"--weights {file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RequestError(f"--weights {error}") from None
    try:
        return foreign.state_dict_in(found, key or None, most_weights(Path(file).stat().st_size))
    except ValueError as error:
        hint = f"; as --weights '{file}#KEY'" if "key=" in str(error) else ""
        raise RequestError(f"--weights {file}: {error}{hint}") from None


def load_tensors(model: nn.Module, given: Mapping[str, Tensor], path: str) -> None:
    """Load the tensors of a checkpoint or of a ticket, by plain name, into a model, in place.

    Args:
        model: what they are loaded into.
        given: the tensors; each of the model's, in its shape.
        path: where they come from, as `--weights` says it.

    Raises:
        RequestError: the first tensors that are missing, too many, of another shape, or that the model's cannot take,
            and how many there are of each kind.
    """
    state = unwrap(model).state_dict()
    there, first = plain_tensors(state), first_names(state)
    tensors = {first.get(name, name): tensor for name, tensor in given.items()}
    missing = [name for name in there if name not in tensors]
    strange = [name for name in tensors if name not in there]
    others = [name for name in there if name in tensors and tensors[name].shape != there[name].shape]
    if missing or strange or others:
        # The nearest names are looked for among the few that are told: of another network there are hundreds.
        problems = [
            f"{name} {list(there[name].shape)} is missing{nearest_hint(name, strange)}" for name in missing[:_TOLD]
        ]
        problems += [f"{name} {list(tensors[name].shape)} is not in the model" for name in strange[:_TOLD]]
        problems += [
            f"{name} has shape {list(tensors[name].shape)}, the model's {list(there[name].shape)}"
            for name in others[:_TOLD]
        ]
        counts = ((missing, "are missing"), (strange, "are not in the model"), (others, "have another shape"))
        if more := [f"{len(names)} {what}" for names, what in counts if len(names) > _TOLD]:
            problems.append(
                f"of the {len(there)} tensors of the model and {len(tensors)} of the file {', '.join(more)}"
            )
        raise RequestError([f"--weights {Path(path).name}: {problem}" for problem in problems])
    try:
        set_state(model, given)
    except ValueError as error:
        raise RequestError(f"--weights {Path(path).name}: {error}") from None
