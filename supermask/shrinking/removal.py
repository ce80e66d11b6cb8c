"""Channels taken out of a masked network: those that nobody reads, and those that give a constant.

See `compaction` for what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..choosing.coupling import Coupled, Group
from ..choosing.gradients import undisturbed
from ..masks.masks import Masks
from ..masks.targets import LINEAR, find_targets
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
    without_columns,
)
from .trials import SCALES, inputs_to_double, normal_like, random_like, redraw, run, to_double


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
    known to be constant wherever they are read, which are needed, and of which a writer's filter is empty.
    """

    key: str
    group: Group
    readers: list[_Reader]
    alive: Tensor
    constant: Tensor
    blocked: Tensor
    empty: Tensor


class Removal:
    """The masked network in float64 while channels are taken out of it by being set to 0.

    `open` says of each parameter which entries may differ from 0: what the masks keep of what is still there.
    `left_whole` says of each weight of which no output can go why that is so.
    """

    def __init__(
        self,
        masked: nn.Module,
        masks: Masks,
        example: Any,
        coupled: Coupled,
        barred: Mapping[str, str],
        folding: bool = True,
    ) -> None:
        self.example, self.masks, self.folding = inputs_to_double(example), masks, folding
        self.targets = find_targets(masked)
        everything = find_targets(masked, include="*")
        self.names = {id(target.parameter): name for name, target in everything.items()}
        reasons = {key: barred.get(key) or group.kept or _misfit(group) for key, group in coupled.groups.items()}
        self.left_whole = dict(coupled.left_whole)
        for key, reason in reasons.items():
            self.left_whole |= dict.fromkeys(coupled.groups[key].rows, reason) if reason else {}
        self.groups = [_channels(key, group) for key, group in coupled.groups.items() if not reasons[key]]
        self.split = _splits(self.groups)
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
        self._find_empty()
        reads = self._constants()
        gone: dict[str, Tensor] = {}
        for channels in self.groups:
            blocked = ~channels.alive
            channels.constant = channels.alive & channels.empty
            for number, reader in enumerate(channels.readers):
                known, value = reads[channels.key, number]
                used = self._used(reader)
                channels.constant[reader.channels[~known]] = False
                folds = takes_constants(reader.module) and self.folding
                blocked[reader.channels[used & ~(known & ((value == 0) | folds))]] = True
            channels.blocked = blocked
            gone[channels.key] = ~blocked
            if torch.equal(~blocked, channels.alive):
                gone[channels.key][int(channels.alive.nonzero()[0])] = False
        self._balance(gone)
        for channels in self.groups:
            if bool(gone[channels.key].any()):
                self._take_out(channels, gone[channels.key], reads)
        return any(bool(each.any()) for each in gone.values())

    def _used(self, reader: _Reader) -> Tensor:
        """Which of the places a reader's weight reads at all."""
        weight = self.open[self.name(reader.module)]
        return columns_read(reader.module, weight)[reader.places.to(weight.device)].cpu()

    def _find_empty(self) -> None:
        """Of which channels some writer's filter is empty, or reads such channels only: those alone can be constant."""
        read: dict[str, Tensor] = {}
        for channels in self.groups:
            channels.empty = torch.zeros_like(channels.alive)
        found = True
        while found:
            found = False
            for channels in self.groups:
                for member in channels.group.members:
                    if isinstance(member.module, LAYERS) and member.writes:
                        opened = self.open[self.name(member.module)]
                        if (silent := read.get(member.path)) is not None and not is_depthwise(member.module):
                            opened = without_columns(member.module, opened, silent)
                        empty = ~rows_read(member.module, opened)[torch.tensor(member.places)]
                        channels.empty[torch.tensor(member.channels)[empty]] = True
                for reader in channels.readers:
                    silent = read.setdefault(reader.path, ~all_kept(reader.module, outputs=False))
                    now = silent.clone()
                    now[reader.places] = channels.empty[reader.channels]
                    found |= not torch.equal(now, silent)
                    read[reader.path] = now

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
        for member in channels.group.members:
            places = torch.tensor(member.places)[gone[torch.tensor(member.channels)]]
            if member.writes and isinstance(member.module, LAYERS):
                self._close(self.name(member.module), member.module, "out", places)
            if member.writes:
                for attribute in ("bias",) if isinstance(member.module, LAYERS) else ("weight", "bias"):
                    if isinstance(getattr(member.module, attribute, None), Tensor):
                        self._close(self.name(member.module, attribute), None, "out", places)
        channels.alive &= ~gone

    def _close(self, name: str, layer: Any, side: str, places: Tensor) -> None:
        for tensor in (self.open[name], self.parameters[name].data):
            places = places.to(tensor.device)
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
        held[places.to(held.device)] = values.to(held)
        layer.bias.data += torch.einsum("goi,gi->go", sums, held.reshape(sums.shape[0], -1)).flatten()

    def _constants(self) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        """By group and reader: which places hold a constant, and which."""
        wanted = {
            (channels.key, number): (reader, (channels.alive & channels.empty)[reader.channels])
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
                axis = -1 if isinstance(reader.module, LINEAR) else -len(reader.module.kernel_size) - 1

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

    def _balance(self, gone: dict[str, Tensor]) -> None:
        """Fewer channels, so that parts of one size lose equally many; a grouped convolution may lose whole groups."""
        before = -1
        while before != (now := sum(int(each.sum()) for each in gone.values())):
            before = now
            for channels in self.groups:
                for table in channels.group.chunks:
                    lost = (gone[channels.key] | ~channels.alive)[table]
                    surplus = _surplus(gone[channels.key][table], lost, lost.sum(1).min())
                    gone[channels.key][table[surplus]] = False
            for split in self.split:
                both = [split.lost(side, gone) for side in (False, True)]
                whole = both[0][1].all(1) & both[1][1].all(1)
                if bool(whole.all()):
                    whole[0] = False
                for side, (pending, lost) in zip((False, True), both, strict=True):
                    # Of what is left each group reads and writes one at least.
                    least = lost[~whole].sum(1).min().clamp(max=lost.shape[1] - 1)
                    split.undo(side, gone, _surplus(pending, lost, least) & ~whole[:, None])

    def layers(self, net: nn.Module | None = None, keys: Collection[str] | None = None) -> dict[str, Smaller]:
        """Every layer that becomes smaller, as it will be, by its path: of another net too, by some of the groups."""
        sides: dict[str, dict[bool, Tensor]] = {}
        for channels in self.groups:
            if bool(channels.alive.all()) or not (keys is None or channels.key in keys):
                continue
            for member in channels.group.members:
                kept = sides.setdefault(member.path, {}).setdefault(
                    member.writes, all_kept(member.module, member.writes)
                )
                kept[torch.tensor(member.places)] &= channels.alive[torch.tensor(member.channels)]
        net = net or self.net
        return {path: cut(net.get_submodule(path), kept.get(True), kept.get(False)) for path, kept in sides.items()}

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
        for channels in self.groups:
            left = channels.alive & channels.empty
            told = []
            for why, those in (
                ("what is read of them depends on more than on them", left & ~channels.constant),
                (
                    "they give a constant, and a layer that reads it pads with zeros, so that its bias cannot hold it"
                    if self.folding
                    else "they give a constant, and with it in the bias of its readers the outputs are others",
                    left & channels.constant & channels.blocked,
                ),
                ("a layer needs one, and groups equally many", left & ~channels.blocked),
            ):
                if count := int(those.sum()):
                    told.append(f"{count} of {len(left)}: {why}")
            if told:
                reasons[channels.key] = "; ".join(told)
        for name, why in self.left_whole.items():
            if name in self.masks and self.masks[name].dim() > 1:
                rows = self.masks[name].movedim(self.targets[name].output_axis, 0).flatten(1).any(1)
                if count := int((~rows).sum()):
                    reasons[name] = f"{count} of {len(rows)}: {why}"
        return reasons


@dataclass
class _Split:
    """A grouped convolution: which channels are its inputs and its outputs, as (key, places, channels)."""

    groups: int
    sizes: tuple[int, int]
    sides: tuple[list[tuple[_Channels, Tensor, Tensor]], list[tuple[_Channels, Tensor, Tensor]]]

    def lost(self, side: bool, gone: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """[groups, places of each]: those that are to go now, and with them those that went before."""
        pending, lost = torch.zeros(2, self.sizes[side], dtype=torch.bool)
        for channels, places, found in self.sides[side]:
            pending[places] = gone[channels.key][found]
            lost[places] = (gone[channels.key] | ~channels.alive)[found]
        return pending.reshape(self.groups, -1), lost.reshape(self.groups, -1)

    def undo(self, side: bool, gone: Mapping[str, Tensor], places: Tensor) -> None:
        """Leave what stands at these places."""
        for channels, here, found in self.sides[side]:
            gone[channels.key][found[places.flatten()[here]]] = False


def _surplus(pending: Tensor, lost: Tensor, least: Tensor) -> Tensor:
    """Of what is to go in each part, what is too many, if each part may lose so many in all."""
    before = (lost & ~pending).sum(1, keepdim=True)
    return pending & (before + pending.cumsum(1) > least)


def _splits(groups: list[_Channels]) -> list[_Split]:
    """The grouped convolutions, but for those that treat each channel by itself."""
    found: dict[str, _Split] = {}
    for channels in groups:
        for member in channels.group.members:
            module = member.module
            if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
                sizes = (module.in_channels, module.out_channels)
                split = found.setdefault(member.path, _Split(module.groups, sizes, ([], [])))
                pairs = (torch.tensor(member.places), torch.tensor(member.channels))
                split.sides[member.writes].append((channels, *pairs))
    return list(found.values())


def _channels(key: str, group: Group) -> _Channels:
    readers = [
        _Reader(member.path, member.module, torch.tensor(member.places), torch.tensor(member.channels))
        for member in group.members
        if not member.writes
    ]
    alive = torch.ones(group.channels, dtype=torch.bool)
    return _Channels(key, group, readers, alive, ~alive, ~alive, ~alive)


def _misfit(group: Group) -> str:
    """Why a module of the group cannot become smaller."""
    for member in group.members:
        module = member.module
        if not isinstance(module, (*LAYERS, *PER_CHANNEL)):
            return f"{member.path} ({type(module).__name__}) looks at several channels at once"
    return ""


def _same_places(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """[places]: at which all calls were given the same; where calls differ, as of a detector, the same everywhere."""
    if not first or not second:
        return torch.zeros((), dtype=torch.bool)
    if [x.shape for x in first] != [x.shape for x in second]:
        rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in (*first, *second)])
        return (rows == rows[:1]).all(0) if len(rows) else torch.zeros((), dtype=torch.bool)
    return torch.stack([(a == b).reshape(-1, a.shape[-1]).all(0) for a, b in zip(first, second, strict=True)]).all(0)
