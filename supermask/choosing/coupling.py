"""Filters with what belongs to their channel: bias, the norm behind, and the filters that a residual sum ties to them.

Which layers write a channel together is read off a pass on an example input (see `channels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..masks.targets import Target, Targets, find_targets
from ..selection.top_k import top_k
from .channels import trace
from .granularity import Units
from .labels import Site, Trace


class Member(NamedTuple):
    """A module that writes, or reads, channels of a group: (place, channel) pairs, as two lists."""

    path: str
    module: Any
    writes: bool
    places: list[int]
    channels: list[int]


@dataclass
class Group:
    """Channels that several tensors write together.

    `rows` maps a masked tensor to (index of its filter, channel) pairs, `companions` the biases and norm parameters to
    (index of the entry, channel) pairs; `members` are all modules that write or read the channels. `parts` and `chunks`
    are tables of channels, [parts, channels of each], that keep equally many so that they can be taken out: the groups
    of grouped convolutions, and what the network splits into chunks. `kept` says why the channels, though they can be
    dropped, cannot be taken out of the network; "" if they can.
    """

    channels: int
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    companions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    chunks: list[Tensor] = field(default_factory=list)
    kept: str = ""


class Coupled:
    """Granularity: a unit is a channel, with all that writes it. Channels of the network's outputs stay whole.

    Groups are keyed by their first masked tensor. A channel that is dropped is exactly 0 wherever it is written.
    `left_whole` says of each other target why its filters stay.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        shapes: Mapping[str, tuple[int, ...]],
        left_whole: Mapping[str, str] | None = None,
    ) -> None:
        self.groups = dict(groups)
        self.shapes = dict(shapes)
        self.left_whole = dict(left_whole or {})

    def reduce(self, scores: Mapping[str, Tensor], targets: Targets) -> Units:
        """[channels] of each group: the sum of the scores of all weights that write the channel.

        Raises:
            ValueError: a target list without any coupled filter.
        """
        units = {}
        for key, group in self.groups.items():
            rows = {name: rows for name, rows in group.rows.items() if name in targets}
            if not rows:
                continue
            first = scores[next(iter(rows))]
            total = torch.zeros(group.channels, dtype=first.dtype, device=first.device)
            for name, (index, channel) in rows.items():
                by_filter = scores[name].movedim(targets[name].output_axis, 0).flatten(1).sum(1).to(total)
                total.index_add_(0, channel.to(total.device), by_filter[index.to(total.device)])
            units[key] = total
        if not units:
            why = "".join(f"; {name}: {reason}" for name, reason in self.left_whole.items() if name in targets)
            dense = [f"{name} ({entry.reason})" for name, entry in targets.left_out.items() if entry.dimensions > 1]
            why += f"; no targets are {', '.join(dense)}" if dense else ""
            raise ValueError(f"no target has filters that can be dropped as channels: {', '.join(targets)}{why}")
        return units

    def choose(self, units: Mapping[str, Tensor], counts: Mapping[str, int]) -> Units:
        """The best channels of each group, ties to the first; equally many of each of its parts, where it has some."""
        return {key: _best(unit, counts[key], self.groups[key]) for key, unit in units.items()}

    def expand(self, kept: Mapping[str, Tensor], targets: Targets) -> Units:
        """Masks of all targets, and of the biases and norms of their channels."""
        masks = {
            name: torch.ones(target.parameter.shape, dtype=torch.bool, device=target.parameter.device)
            for name, target in targets.items()
        }
        for key, keep in kept.items():
            group = self.groups[key]
            for name, (index, channel) in group.rows.items():
                if name in targets:
                    rows = masks[name].movedim(targets[name].output_axis, 0)
                    here = keep.to(rows.device)[channel.to(rows.device)]
                    rows[index.to(rows.device)] &= here.reshape(-1, *[1] * (rows.dim() - 1))
            for name, (index, channel) in group.companions.items():
                if name not in masks:
                    masks[name] = torch.ones(self.shapes[name], dtype=torch.bool, device=keep.device)
                mask = masks[name]
                mask[index.to(mask.device)] &= keep.to(mask.device)[channel.to(mask.device)]
        return masks

    def dropped(self, key: str, masks: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """[channels] of a group: True where nothing is written."""
        gone = torch.ones(self.groups[key].channels, dtype=torch.bool)
        for name, (index, channel) in self.groups[key].rows.items():
            if name in masks:
                rows = masks[name].movedim(targets[name].output_axis, 0)
                gone[channel] &= ~rows.flatten(1).any(1).cpu()[index]
        return gone

    def readers(self, key: str, channels: Tensor, targets: Targets) -> Iterator[tuple[str, list[int]]]:
        """The targets that read a group's channels, and at which inputs those marked; grouped convolutions not."""
        names = {id(target.owners[0][0]): name for name, target in targets.items()}
        for member in self.groups[key].members:
            name = names.get(id(member.module))
            if name and not member.writes and getattr(member.module, "groups", 1) == 1:
                pairs = zip(member.places, member.channels, strict=True)
                yield name, [place for place, channel in pairs if channels[channel]]


def _best(unit: Tensor, count: int, group: Group) -> Tensor:
    """The best channels: equally many of each part, then the best of the rest."""
    kept = torch.zeros_like(unit, dtype=torch.bool)
    table = max((*group.parts, *group.chunks), key=len, default=torch.empty((0, 0), dtype=torch.int64)).to(unit.device)
    for part in table:
        there = int(torch.count_nonzero(unit[part] != -torch.inf))
        kept[part] = top_k(unit[part], min(count // len(table), there))
    rest = (~kept).nonzero().flatten()
    kept[rest[top_k(unit[rest], count - int(kept.count_nonzero()))]] = True
    return kept


def couple(model: nn.Module, targets: Targets, example_input: Any) -> Coupled:
    """Find the channels of a model that can be dropped as a whole, by following a pass on an example input.

    Left whole are, channel by channel, the network's outputs, what attention, recurrent or embedding layers share in,
    those of which some writer is the input, no target or tied, and those that an operation looks at several of, or
    joins to numbers of a fixed width; `Coupled.left_whole` names the tensors of which all are, with the reason.

    Raises:
        ValueError: a model that does not take the input.
    """
    found = trace(model, example_input)
    parameters = find_targets(model, include="*")
    _hold_others(found, targets, parameters)
    roots = found.labels.roots()
    written, left = dict[str, list[int]](), dict[str, str]()
    for name, target in targets.items():
        site = _site(found, target)
        if site is not None and site.path in found.called:
            written[name] = roots[site.writes()].tolist()
        elif target.parameter.dim() > 1:
            left[name] = _why_unwritten(target, site)
    free = {name: [root for root in own if root not in found.labels.held] for name, own in written.items()}
    left |= {name: found.labels.held[written[name][0]] for name, own in free.items() if not own}
    groups: dict[str, Group] = {}
    numbers = torch.full((2, len(roots)), -1)  # of the first label of a set: its group, and its channel there
    for names in _joined({name: own for name, own in free.items() if own}):
        channels = list(dict.fromkeys(root for name in names for root in free[name]))
        numbers[0, channels], numbers[1, channels] = len(groups), torch.arange(len(channels))
        why = next(filter(None, map(found.labels.kept.get, channels)), "")
        groups[names[0]] = Group(len(channels), {name: _pairs(numbers[1, written[name]]) for name in names}, kept=why)
    _fill(list(groups.values()), found, parameters, numbers[:, roots])
    shapes = {name: tuple(each.parameter.shape) for name, each in parameters.items()}
    return Coupled({name: groups[name] for name in targets if name in groups}, shapes, left)


def _why_unwritten(target: Target, site: Site | None) -> str:
    """Why the filters of a target write no channel of the pass."""
    if len(target.owners) > 1:
        return f"{len(target.owners)} layers share it"
    return "no pass of the example input goes by it" if site is not None else f"{target.kind}, no layer"


def _pairs(channels: Tensor) -> tuple[Tensor, Tensor]:
    """The places of what has a channel, and the channels."""
    places = (channels >= 0).nonzero().flatten()
    return places, channels[places]


def _site(found: Trace, target: Target) -> Site | None:
    """The layer whose weight a target is."""
    module, attribute = target.owners[0]
    site = found.sites.get(id(module))
    return site if site is not None and site.inputs and attribute == "weight" else None


def norms_behind(model: nn.Module, targets: Targets, example_input: Any) -> dict[str, Tensor]:
    """The scale of the batch norm that follows each target, by the target's name."""
    found, scales = trace(model, example_input), dict[str, Tensor]()
    for name, target in targets.items():
        site = _site(found, target)
        norm = None if site is None else found.behind.get(site.path)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and isinstance(norm.weight, Tensor):
            scales[name] = norm.weight
    return scales


def _hold_others(found: Trace, targets: Targets, parameters: Targets) -> None:
    """Hold the channels that something else than a target writes; what a shared tensor reads cannot be taken out."""
    wanted = {site.path: target for target in targets.values() if (site := _site(found, target)) is not None}
    owners = {id(target.parameter): target.owners for target in parameters.values()}
    for site in found.sites.values():
        own = {name: each for name, each in site.module._parameters.items() if each is not None}
        if shared := [name for name, each in own.items() if len(owners.get(id(each), ())) > 1]:
            found.labels.keep(site.reads(), f"{site.path} reads them, and its {shared[0]} is shared")
            found.labels.keep(site.writes(), f"the {shared[0]} of {site.path} is shared")
        if not site.inputs or site.path not in found.called:
            continue
        if site.path not in wanted:
            found.labels.hold(site.writes(), f"{site.path or 'the model'} is not among the targets")
        elif "weight" in shared:
            found.labels.hold(site.writes(), f"the weight of {site.path} is shared")
        elif not _has_rows(wanted[site.path]):
            found.labels.hold(site.writes(), f"the filters of {site.path} are spread over its groups")


def _has_rows(target: Target) -> bool:
    """Whether the filters of a layer are rows of its weight that write a channel each."""
    return target.output_axis == 0 or target.groups == 1


def _joined(written: Mapping[str, list[int]]) -> list[list[str]]:
    """The tensors that share a channel with each other, in the order of the first."""
    first: dict[int, str] = {}
    leader = {name: name for name in written}

    def lead(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    order = {name: place for place, name in enumerate(written)}
    for name, roots in written.items():
        for other in {first.setdefault(root, name) for root in roots}:
            one, two = sorted((lead(name), lead(other)), key=order.__getitem__)
            leader[two] = one
    groups: dict[str, list[str]] = {}
    for name in written:
        groups.setdefault(lead(name), []).append(name)
    return list(groups.values())


def _fill(groups: list[Group], found: Trace, parameters: Targets, numbers: Tensor) -> None:
    """Add what else writes and reads the channels of each group.

    Args:
        groups: with the tensors that write their channels.
        found: the pass.
        parameters: of the model, all of them.
        numbers: [2, labels]: of each label its group, -1 for none, and its channel there.
    """

    def parts(labels: Tensor) -> Iterator[tuple[Group, Tensor, Tensor]]:
        home, channel = numbers[:, labels]
        for group in home.unique().tolist():
            places = (home == group).nonzero().flatten()
            if group >= 0:
                yield groups[group], places, channel[places]

    for name, target in parameters.items():
        if (labels := found.entries.get(id(target.parameter))) is not None:
            for group, places, channels in parts(labels):
                group.companions[name] = (places, channels)
    for site in found.sites.values():
        # A norm has one side, and so has what reads and writes each channel by itself.
        alone = site.inputs == site.outputs == getattr(site.module, "groups", 1) > 1
        for writes, labels in ((True, site.writes()), (False, site.reads())):
            for group, places, channels in parts(labels) if writes or not alone else ():
                group.members.append(Member(site.path, site.module, writes, places.tolist(), channels.tolist()))
    for chunks, tables in ((False, found.parts), (True, found.chunks)):
        for table in tables:
            for group, _, channels in parts(table.reshape(-1)):
                if len(channels.unique()) == table.numel():
                    (group.chunks if chunks else group.parts).append(channels.reshape(table.shape))
