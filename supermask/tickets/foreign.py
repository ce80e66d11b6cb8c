"""Masks from and to the files of other programs. No code in such a file is ever run.

    ticket = supermask.foreign.load("model.pt")                          # torch.nn.utils.prune, masks, or plain zeros
    ticket = supermask.foreign.load("model_best.pth", density=0.5)       # hidden-networks
    ticket = supermask.foreign.load("lottery_1a2b/replicate_1/level_5/main")     # open_lth
    ticket = supermask.foreign.load("checkpoint.pth", key="state_dict_ema")      # one of several in a file
    torch.save(supermask.foreign.to_torch_prune(ticket), "pruned.pt")

`module.` and what wrappers add to names is dropped; a tied tensor has one mask, under its first name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..masks.masks import Masks
from ..masks.targets import as_globs, find_named, matches
from ..selection.top_k import top_k
from ..weights.fitting import first_names
from ..weights.plain import why_not_masked
from .checkpoint import read_file as read_file
from .checkpoint import state_dict_in as state_dict_in
from .computed import computed_parts, explain_parts
from .header import most_weights
from .ticket import Ticket, make_state

_ORIGINAL, _MASK, _SCORES = "_orig", "_mask", ".scores"


def load(
    path: str | os.PathLike[str],
    kind: str | None = None,
    density: float | None = None,
    *,
    key: str | None = None,
    include: str | Iterable[str] | None = None,
    max_weights: float | None = None,
) -> Ticket:
    """Read another program's pruned network as a ticket with a final state.

    Args:
        path: a file saved by torch, a safetensors file, or the folder of a level of open_lth.
        kind: `zeros`, `masks`, `torch-prune`, `hidden-networks` or `open-lth`; told from the names of the tensors if
            not given.
        density: of hidden-networks, whose files do not hold it: their `prune_rate`, the fraction kept.
        key: where in the file the state dict is, if there are several: `state_dict_ema`, or `ema/shadow`.
        include: of `zeros`, globs of the tensors to mask.
        max_weights: refuse a file that describes more without holding them, as sparse tensors can. If not given, 25
            million and 10,000 for each byte of the file, and never more than two billion.

    Raises:
        ValueError: a file that cannot be read, is not of that kind, holds several state dicts, tensors that are not
            plain numbers, or weights that are computed from what it holds.
        OSError: a path that cannot be opened.
    """
    path = Path(path)
    if path.is_dir() or kind == "open-lth":
        if kind not in (None, "open-lth"):
            raise ValueError(f"{path} is a folder: expected a file of {kind}")
        return _load_open_lth(path)
    found = read_file(path)
    try:
        most = most_weights(path.stat().st_size) if max_weights is None else max_weights
        return _read(state_dict_in(found, key, most), kind, density, include)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(
    tensors: Mapping[str, Tensor], kind: str | None, density: float | None, include: str | Iterable[str] | None
) -> Ticket:
    chosen = _kind_of(tensors) if kind is None else kind
    find_named("kind", chosen, {**_READERS, "open-lth": _load_open_lth})
    if include is not None and chosen != "zeros":
        raise ValueError(f"include= goes with zeros, this is {chosen}")
    if chosen == "hidden-networks":
        if density is None:
            raise ValueError("a file of hidden-networks does not hold its density: give density=, its prune_rate")
        return from_hidden_networks(tensors, density)
    if density is not None:
        raise ValueError(f"density= goes with hidden-networks, this is {chosen}")
    return from_zeros(tensors, include) if chosen == "zeros" else _READERS[chosen](tensors)


def _kind_of(tensors: Mapping[str, Tensor]) -> str:
    if any(name.endswith(_SCORES) for name in tensors):
        return "hidden-networks"
    if any(_is_pruned(name, tensors) for name in tensors):
        return "torch-prune"
    return "masks" if any(_masked_by(name, tensors) for name in tensors) else "zeros"


def _as_ticket(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], source: str) -> Ticket:
    if wrong := [name for name, mask in masks.items() if tensors[name].shape != mask.shape]:
        raise ValueError(f"masks of other shapes than their weights: {', '.join(wrong)}")
    computed = computed_parts(tensors)
    if asked := {name: part for name, part in computed.items() if name in masks}:
        raise ValueError(explain_parts(asked))
    tensors = _untied(tensors, masks)
    whole = Masks({name: mask for name, mask in masks.items() if name in tensors})
    return Ticket(whole, {"final": make_state(tensors, whole)}, {"source": source})


def _untied(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tied tensor once, where all its names are masked alike; else each name with a tensor of its own."""
    found = dict(tensors)
    for name, first in first_names(tensors).items():
        if name == first:
            continue
        if masks.keys() >= {name, first}:
            alike = torch.equal(masks[name], masks[first])
        else:
            alike = not masks.keys() & {name, first}
        if alike:
            del found[name]
        else:
            found[name] = tensors[name].clone()
    return found


def from_zeros(tensors: Mapping[str, Any], include: str | Iterable[str] | None = None) -> Ticket:
    """A ticket that drops every weight that is exactly 0.

    Args:
        tensors: a state dict, or a checkpoint that holds one.
        include: globs of the tensors to mask; if not given, all floating ones of two axes or more.

    Raises:
        ValueError: no state dict, no tensor to mask, or weights that are computed from what it holds.
    """
    state, globs = state_dict_in(tensors), as_globs(include)
    if not globs and (parts := computed_parts(state)):
        raise ValueError(f"{explain_parts(parts)}; or include=, globs of the tensors to mask, without them")
    masks = {
        name: tensor != 0
        for name, tensor in state.items()
        if (matches(name, globs) if globs else _may_be_weight(name, state))
    }
    if not masks:
        raise ValueError(f"no tensor to mask among {', '.join(state) or 'none'}")
    return _as_ticket(state, masks, "zeros")


def _may_be_weight(name: str, tensors: Mapping[str, Tensor]) -> bool:
    tensor, scaled = tensors[name], name.rpartition("_scale")[0]
    return tensor.is_floating_point() and tensor.dim() > 1 and not why_not_masked(tensor) and scaled not in tensors


def _is_pruned(name: str, tensors: Mapping[str, Tensor]) -> bool:
    return name.endswith(_ORIGINAL) and name.removesuffix(_ORIGINAL) + _MASK in tensors


def from_torch_prune(tensors: Mapping[str, Any]) -> Ticket:
    """A ticket from the state dict of a model pruned by `torch.nn.utils.prune`: `X_orig` and `X_mask` become `X`.

    Raises:
        ValueError: no state dict, or one without such a pair.
    """
    state = state_dict_in(tensors)
    pruned = {name.removesuffix(_ORIGINAL) for name in state if _is_pruned(name, state)}
    if not pruned:
        raise ValueError(f"nothing was pruned by torch.nn.utils.prune: no pair X{_ORIGINAL}, X{_MASK}")
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_MASK) and name.removesuffix(_MASK) in pruned:
            continue
        base = name.removesuffix(_ORIGINAL)
        plain[base if base in pruned else name] = tensor
    return _as_ticket(plain, {name: state[name + _MASK] != 0 for name in plain if name in pruned}, "torch-prune")


def from_masks(tensors: Mapping[str, Any]) -> Ticket:
    """A ticket from a state dict with masks of 0 and 1 as buffers: `X_mask` beside `X`, or `mask` beside `weight`.

    Raises:
        ValueError: no state dict, or one without such a pair.
    """
    state = state_dict_in(tensors)
    found = {weight: name for name in state if (weight := _masked_by(name, state))}
    if not found:
        raise ValueError(f"no masks: expected tensors of 0 and 1, X{_MASK} beside X or mask beside weight")
    plain = {name: tensor for name, tensor in state.items() if name not in found.values()}
    return _as_ticket(plain, {name: state[found[name]] != 0 for name in plain if name in found}, "masks")


def _masked_by(name: str, tensors: Mapping[str, Tensor]) -> str:
    """The weight that this tensor is the mask of, or nothing."""
    module, dot, attribute = name.rpartition(".")
    weight = f"{module}{dot}weight" if attribute == "mask" else name.removesuffix(_MASK)
    pair = weight != name and weight in tensors and tensors[weight].shape == tensors[name].shape
    return weight if pair and _is_mask(tensors[name]) else ""


def _is_mask(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def to_torch_prune(ticket: Ticket, state: str = "final") -> dict[str, Tensor]:
    """The state dict of the ticket's network as `torch.nn.utils.prune` has it.

    A model takes it after `prune.identity(module, "weight")` on each masked layer.

    Raises:
        ValueError: a state that the ticket does not have.
        TicketError: the tensors are not those that were saved.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in ticket.state_dict(state).items():
        if name in ticket.masks:
            found[name + _ORIGINAL] = tensor
            found[name + _MASK] = ticket.masks[name].to(tensor.dtype)
        else:
            found[name] = tensor
    return found


def from_hidden_networks(tensors: Mapping[str, Any], density: float) -> Ticket:
    """A ticket from a checkpoint of hidden-networks, `X.weight` and `X.scores`, as its GetSubnet masks it.

    That is layer by layer: of n weights, those of the int((1 - density) * n) smallest absolute scores are dropped.

    Source: Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020.

    Args:
        tensors: the checkpoint or its state dict.
        density: its `prune_rate`, which is the fraction kept.

    Raises:
        ValueError: no state dict, no scores, or a density outside of (0, 1].
    """
    state = state_dict_in(tensors)
    scores = {name.removesuffix(_SCORES) + ".weight": t for name, t in state.items() if name.endswith(_SCORES)}
    if not scores:
        raise ValueError("no scores: expected tensors X.scores beside X.weight")
    if lost := [name for name in scores if name not in state]:
        raise ValueError(f"scores without weights: {', '.join(lost)}")
    if not 0 < density <= 1:
        raise ValueError(f"density {density}: expected a fraction in (0, 1]")
    masks = {}
    for name, score in scores.items():
        kept = score.numel() - int((1 - density) * score.numel())
        masks[name] = top_k(score.detach().abs().reshape(-1).float(), kept).reshape(score.shape)
    plain = {name: tensor for name, tensor in state.items() if not name.endswith(_SCORES)}
    return _as_ticket(plain, masks, "hidden-networks")


def to_hidden_networks(ticket: Ticket, state: str = "final") -> dict[str, Any]:
    """A checkpoint for hidden-networks: `state_dict` with scores of 1 and 0, and the `prune_rate` that goes with them.

    Raises:
        ValueError: layers of several densities, which one `prune_rate` does not give; masks of other tensors than
            weights; or a state that the ticket does not have.
        TicketError: the tensors are not those that were saved.
    """
    if odd := [name for name in ticket.masks if not name.endswith(".weight")]:
        raise ValueError(f"hidden-networks has scores of weights alone, not of {', '.join(odd)}")
    rate = _prune_rate({name: (int(mask.sum()), mask.numel()) for name, mask in ticket.masks.items()})
    tensors = ticket.state_dict(state)
    scores = {name.removesuffix(".weight") + _SCORES: mask.float() for name, mask in ticket.masks.items()}
    return {"state_dict": {f"module.{name}": t for name, t in (tensors | scores).items()}, "prune_rate": rate}


def _prune_rate(counts: Mapping[str, tuple[int, int]]) -> float:
    """The density of which int((1 - density) * size) leaves each tensor what it keeps."""
    low = max(((size - kept) / size for kept, size in counts.values()), default=0.0)
    high = min(((size - kept + 1) / size for kept, size in counts.values()), default=1.0)
    rate = 1 - (low + high) / 2
    if not all(size - int((1 - rate) * size) == kept for kept, size in counts.values()):
        found = ", ".join(f"{name} {kept / size:.4g}" for name, (kept, size) in counts.items())
        raise ValueError(f"hidden-networks has one density for all layers; this ticket has {found}")
    return rate


def from_open_lth(
    masks: Mapping[str, Any], tensors: Mapping[str, Any], start: Mapping[str, Any] | None = None
) -> Ticket:
    """A ticket from what open_lth saves of a level: `mask.pth` and its models.

    Source: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.

    Args:
        masks: the content of `mask.pth`, 0 or 1 for each weight.
        tensors: the state dict at the end of training.
        start: the state dict at its start.

    Raises:
        ValueError: masks that do not fit the tensors.
    """
    final = state_dict_in(tensors)
    kept = {name: mask != 0 for name, mask in state_dict_in(masks).items()}
    if lost := [name for name in kept if name not in final]:
        raise ValueError(f"masks without weights: {', '.join(lost)}")
    ticket = _as_ticket(final, kept, "open-lth")
    if start is None:
        return ticket
    states = {"start": make_state(state_dict_in(start), ticket.masks), **ticket.states}
    return Ticket(ticket.masks, states, ticket.meta)


def to_open_lth(ticket: Ticket) -> dict[str, Tensor]:
    """The content of open_lth's `mask.pth`: 0 or 1 for each weight, as int32."""
    if ticket.parts:
        raise ValueError(f"the ticket is of {len(ticket.parts)} tasks: give one of them, ticket.task(name)")
    return {name: mask.int() for name, mask in ticket.masks.items()}


def _load_open_lth(path: Path) -> Ticket:
    folder = path if path.is_dir() else path.parent
    mask = path / "mask.pth" if path.is_dir() else path
    if not mask.is_file():
        inside = sorted(str(found.parent.relative_to(folder)) for found in folder.glob("**/mask.pth"))
        hint = f"; there is one in {', '.join(inside[:10])}" if inside else ""
        raise ValueError(f"{folder} has no mask.pth{hint}")
    models = sorted(
        (tuple(map(int, numbers.groups())), found)
        for found in folder.glob("model_ep*_it*.pth")
        if (numbers := re.fullmatch(r"model_ep(\d+)_it(\d+)\.pth", found.name))
    )
    if not models:
        raise ValueError(f"{folder} has no model_ep*_it*.pth beside its mask")
    start = read_file(models[0][1]) if len(models) > 1 else None
    return from_open_lth(read_file(mask), read_file(models[-1][1]), start)


_READERS: dict[str, Callable[..., Ticket]] = {
    "zeros": from_zeros,
    "masks": from_masks,
    "torch-prune": from_torch_prune,
    "hidden-networks": from_hidden_networks,
}
