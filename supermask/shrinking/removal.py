"""Channels taken out of a masked network: those that nobody reads, and those that give a constant.

See `compaction` for what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..choosing.coupling import Group, Member, couple, random_like
from ..choosing.gradients import undisturbed
from ..masks.masks import Masks
from ..masks.targets import find_targets
from .slicing import (
    LAYERS,
    PER_CHANNEL,
    Smaller,
    all_kept,
    blocks_of,
    columns_read,
    cut,
    is_depthwise,
    rows_read,
    takes_constants,
)
from .trials import SCALES, inputs_to_double, normal_like, redraw, run, to_double


@dataclass
class _Reader:
    """What a layer reads of a group: `channels` of it at `places` of its inputs, in order."""

    path: str
    module: Any
    places: Tensor
    channels: Tensor


@dataclass
class _Channels:
    """The channels of a group: modules that write or read them by path; bool [channels]: which are left, which are
    known to be constant wherever they are read, and which are needed.
    """

    key: str
    group: Group
    members: list[tuple[str, Member]]
    readers: list[_Reader]
    alive: Tensor
    constant: Tensor
    blocked: Tensor


class Removal:
    """The masked network in float64 while channels are taken out of it by being set to 0.

    `open` says of each parameter which entries may differ from 0: what the masks keep of what is still there.
    """

    def __init__(self, masked: nn.Module, masks: Masks, example: Any) -> None:
        self.example, self.masks = inputs_to_double(example), masks
        self.targets = targets = find_targets(masked)
        try:
            coupled = couple(masked, targets, example)
        except ValueError as error:
            cause = error.__cause__
            said = f"{type(cause).__name__}: {cause}" if cause else str(error)
            raise ValueError(
                f"the model cannot be traced for channels that belong together: {said}; compaction needs a model and "
                "an example_input that torch-pruning can follow"
            ) from error
        self.names = {id(target.parameter): name for name, target in find_targets(masked, include="*").items()}
        alone = {id(t.parameter) for t in find_targets(masked, include="*").values() if len(t.owners) == 1}
        plain = {id(target.parameter) for target in targets.values()} & alone
        paths = {id(module): path for path, module in masked.named_modules()}
        self.groups = [
            _channels(key, group, paths)
            for key, group in coupled.groups.items()
            if all(_can_be_cut(member, paths, plain, alone) for member in group.members)
        ]
        self.net = to_double(masked)
        self.parameters = {name: t.parameter for name, t in find_targets(self.net, include="*").items()}
        self.open = {
            name: masks[name].to(p.device).clone() if name in masks else torch.ones_like(p, dtype=torch.bool)
            for name, p in self.parameters.items()
        }

    def name(self, module: nn.Module, attribute: str = "weight") -> str:
        """The name of a tensor of the masked network."""
        return self.names[id(getattr(module, attribute))]

    @torch.no_grad()
    def remove(self) -> bool:
        """Take out every channel that may go now; whether there was one."""
        reads = self._constants()
        found = False
        for channels in self.groups:
            blocked = ~channels.alive
            channels.constant = channels.alive & self._cut(channels)
            for number, reader in enumerate(channels.readers):
                known, value = reads[channels.key, number]
                used = self._used(reader)
                channels.constant[reader.channels[~known]] = False
                stays = used & ~(known & ((value == 0) | takes_constants(reader.module)))
                blocked[reader.channels[stays]] = True
            channels.blocked = blocked
            gone = ~blocked
            if torch.equal(gone, channels.alive):
                gone[int(gone.nonzero()[0])] = False
            gone = _balanced(channels, gone)
            if bool(gone.any()):
                self._take_out(channels, gone, reads)
                found = True
        return found

    def _used(self, reader: _Reader) -> Tensor:
        """Which of the places a reader's weight reads at all."""
        weight = self.open[self.name(reader.module)]
        return columns_read(reader.module, weight)[reader.places].cpu()

    def _cut(self, channels: _Channels) -> Tensor:
        """Of which channels some writer's filter is empty: only those can be constant."""
        empty = torch.zeros(channels.group.channels, dtype=torch.bool)
        for _, member in channels.members:
            if isinstance(member.module, LAYERS) and member.writes:
                rows = rows_read(member.module, self.open[self.name(member.module)])
                places, found = torch.tensor(member.places), torch.tensor(member.channels)
                empty[found[~rows[places]]] = True
        return empty

    def _take_out(
        self, channels: _Channels, gone: Tensor, reads: Mapping[tuple[str, int], tuple[Tensor, Tensor]]
    ) -> None:
        for number, reader in enumerate(channels.readers):
            known, value = reads[channels.key, number]
            here = gone[reader.channels]
            folded = here & self._used(reader) & known & (value != 0)
            if bool(folded.any()):
                self._fold(reader, reader.places[folded], value[folded])
            self._close(self.name(reader.module), reader.module, "in", reader.places[here])
        for _, member in channels.members:
            places = torch.tensor(member.places)[gone[torch.tensor(member.channels)]]
            if member.writes and isinstance(member.module, LAYERS):
                self._close(self.name(member.module), member.module, "out", places)
            if member.writes and isinstance(member.module, (*LAYERS, *PER_CHANNEL)):
                for attribute in ("bias",) if isinstance(member.module, LAYERS) else ("weight", "bias"):
                    if isinstance(entries := getattr(member.module, attribute, None), Tensor) and entries.numel() > 1:
                        self._close(self.name(member.module, attribute), None, "out", places)
        channels.alive &= ~gone

    def _close(self, name: str, layer: Any, side: str, places: Tensor) -> None:
        for tensor in (self.open[name], self.parameters[name].data):
            if layer is None:
                tensor[places] = 0
                continue
            blocks = blocks_of(layer, tensor)
            if side == "out":
                blocks[places // blocks.shape[1], places % blocks.shape[1]] = 0
            else:
                blocks[places // blocks.shape[2], :, places % blocks.shape[2]] = 0

    def _fold(self, reader: _Reader, places: Tensor, values: Tensor) -> None:
        """Add what a constant gives, everywhere, to the bias of its reader, which is made if there is none."""
        layer: Any = self.net.get_submodule(reader.path)
        weight = blocks_of(layer, layer.weight.data)
        sums = weight.flatten(3).sum(3) if weight.dim() > 3 else weight
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(sums.shape[0] * sums.shape[1]))
        elif name := self.names.get(id(getattr(reader.module, "bias", None))):
            self.open[name].fill_(True)
        held = weight.new_zeros(sums.shape[0] * sums.shape[2])
        held[places] = values.to(held)
        layer.bias.data += torch.einsum("goi,gi->go", sums, held.reshape(sums.shape[0], -1)).flatten()

    def _constants(self) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        """By group and reader: which places hold a constant, and which."""
        wanted = {
            (channels.key, number): (reader, (channels.alive & self._cut(channels))[reader.channels])
            for channels in self.groups
            for number, reader in enumerate(channels.readers)
        }
        needed = any(bool(here.any()) for _, here in wanted.values())
        with undisturbed(self.net), torch.no_grad():
            # Other weights of the same masks: what is the same in every pair cannot depend on them, or on the input.
            makers: list[tuple[float | None, Callable[[Any], Any]]] = [(None, random_like)]
            makers += [(scale, partial(normal_like, scale=scale)) for scale in SCALES]
            pairs = [
                [self._record(redraw(self.net, self.open, seed, scale), make(self.example), wanted) for seed in (1, 2)]
                for scale, make in (makers if needed else ())
            ]
            actual = [self._record(self.net, make(self.example), wanted) for _, make in (makers if needed else ())]
        found = {}
        for key, (reader, here) in wanted.items():
            known = torch.zeros(len(reader.places), dtype=torch.bool)
            value = torch.zeros(len(reader.places), dtype=torch.float64)
            if bool(here.any()):
                calls = torch.cat([x.reshape(-1, x.shape[-1]) for run in actual for x in run[key]])
                equal = reduce(torch.logical_and, (_same_places(first[key], second[key]) for first, second in pairs))
                if len(calls):
                    low, high = calls.amin(0), calls.amax(0)
                    even = high - low <= 1e-12 * torch.maximum(high.abs(), low.abs())
                    known[here] = (equal & even).cpu()
                    value[here] = calls[0].cpu()
            found[key] = known, value
        return found

    def _record(
        self, net: nn.Module, inputs: Any, wanted: Mapping[Any, tuple[_Reader, Tensor]]
    ) -> dict[Any, list[Tensor]]:
        """What readers get at the wanted places, of each call, places last."""
        held: dict[Any, list[Tensor]] = {key: [] for key in wanted}
        handles = []
        for key, (reader, here) in wanted.items():
            if bool(here.any()):
                axis = -1 if isinstance(reader.module, nn.Linear) else -len(reader.module.kernel_size) - 1

                def keep(
                    module: Any, args: Any, key: Any = key, axis: int = axis, places: Tensor = reader.places[here]
                ) -> None:
                    held[key].append(args[0].movedim(axis, -1)[..., places.to(args[0].device)])

                handles.append(net.get_submodule(reader.path).register_forward_pre_hook(keep))
        try:
            run(net, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return held

    def layers(self) -> dict[str, Smaller]:
        """Every layer that becomes smaller, as it will be, by its path."""
        sides: dict[str, dict[bool, Tensor]] = {}
        for channels in self.groups:
            if bool(channels.alive.all()):
                continue
            for path, member in channels.members:
                if isinstance(member.module, nn.PReLU) and member.module.num_parameters == 1:
                    continue
                kept = sides.setdefault(path, {}).setdefault(member.writes, all_kept(member.module, member.writes))
                kept[torch.tensor(member.places)] &= channels.alive[torch.tensor(member.channels)]
        return {
            path: cut(self.net.get_submodule(path), kept.get(True), kept.get(False)) for path, kept in sides.items()
        }

    def removed(self) -> dict[str, tuple[int, ...]]:
        """By weight: the outputs that are gone."""
        gone: dict[str, tuple[int, ...]] = {}
        for channels in self.groups:
            for name, (index, channel) in channels.group.rows.items():
                if places := index[~channels.alive[channel]].tolist():
                    gone[name] = tuple(sorted({*gone.get(name, ()), *places}))
        return gone

    def reasons(self) -> dict[str, str]:
        """By weight: why outputs stay whose filter is empty."""
        reasons: dict[str, str] = {}
        known: set[str] = set()
        for channels in self.groups:
            known |= channels.group.rows.keys()
            left = channels.alive & self._cut(channels)
            told = []
            for why, those in (
                ("what is read of them depends on more than on them", left & ~channels.constant),
                (
                    "they give a constant, and a layer that reads it pads with zeros, so that its bias cannot hold it",
                    left & channels.constant & channels.blocked,
                ),
                ("a layer needs one, and groups equally many", left & ~channels.blocked),
            ):
                if count := int(those.sum()):
                    told.append(f"{count} of {len(left)}: {why}")
            if told:
                reasons[channels.key] = "; ".join(told)
        for name, target in self.targets.items():
            if name not in known and name in self.masks and target.parameter.dim() > 1:
                rows = self.masks[name].movedim(target.output_axis, 0).flatten(1).any(1)
                if count := int((~rows).sum()):
                    reasons[name] = (
                        f"{count} of {len(rows)}: not channels that can be removed (outputs, attention, norms)"
                    )
        return reasons


def _channels(key: str, group: Group, paths: Mapping[int, str]) -> _Channels:
    members = [(paths[id(m.module)], m) for m in group.members if id(m.module) in paths and m.channels]
    readers = [
        _Reader(path, member.module, torch.tensor(member.places), torch.tensor(member.channels))
        for path, member in members
        if not member.writes
    ]
    alive = torch.ones(group.channels, dtype=torch.bool)
    return _Channels(key, group, members, readers, alive, ~alive, ~alive)


def _can_be_cut(member: Member, paths: Mapping[int, str], plain: set[int], alone: set[int]) -> bool:
    """Whether a module can become smaller: norms over several channels and tied tensors cannot."""
    module = member.module
    if id(module) not in paths:
        return True  # an operation
    if not isinstance(module, (*LAYERS, *PER_CHANNEL)) or any(id(p) not in alone for p in module.parameters()):
        return False
    split = isinstance(module, nn.modules.conv._ConvNd) and module.transposed and module.groups > 1
    return not split and (not isinstance(module, LAYERS) or id(module._parameters.get("weight")) in plain)


def _balanced(channels: _Channels, gone: Tensor) -> Tensor:
    """Fewer channels, so that each group of a grouped convolution loses as many."""
    split = [
        member
        for _, member in channels.members
        if getattr(member.module, "groups", 1) > 1 and not is_depthwise(member.module)
    ]
    before = -1
    while before != int(gone.sum()):
        before = int(gone.sum())
        for member in split:
            places = all_kept(member.module, member.writes).logical_not()
            places[torch.tensor(member.places)] = gone[torch.tensor(member.channels)]
            blocks = places.reshape(member.module.groups, -1)
            surplus = blocks & (blocks.cumsum(1) > int(blocks.sum(1).min()))
            gone[torch.tensor(member.channels)] &= ~surplus.flatten()[torch.tensor(member.places)]
    return gone


def _same_places(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """[places]: at which all calls were given the same; none where the calls themselves differ."""
    if [x.shape for x in first] != [x.shape for x in second] or not first:
        return torch.zeros((), dtype=torch.bool)
    return torch.stack([(a == b).reshape(-1, a.shape[-1]).all(0) for a, b in zip(first, second, strict=True)]).all(0)
