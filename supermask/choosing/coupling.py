"""Filters with what belongs to their channel: bias, the norm behind, and the filters that a residual sum ties to them.

Which layers write a channel together is read from torch-pruning's dependency graph (Fang et al., DepGraph: Towards Any
Structural Pruning, 2023), traced on an example input. The graph guesses how channels pass through reshapes, so what it
says is tried out: behind dropped filters nothing may depend on the input or on other weights.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..masks.targets import NORMS, Target, Targets, find_targets
from ..selection.top_k import top_k
from .gradients import call, tensors_in, undisturbed
from .granularity import Units

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_FREE_OF_WEIGHTS = ("_ElementWiseOp", "_ReshapeOp", "_SplitOp", "_ConcatOp", "_SliceOp", "_ExpandOp")


class Member(NamedTuple):
    """A module of a copy of the model and the original one, whether it writes, and (place, channel) pairs."""

    twin: Any
    module: Any
    writes: bool
    places: list[int]
    channels: list[int]


@dataclass
class Group:
    """Channels that several tensors write together.

    `rows` maps a masked tensor to (index of its filter, channel) pairs, `companions` the biases and norm parameters to
    (index of the entry, channel) pairs; `members` are all modules that write or read the channels.
    """

    channels: int
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    companions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)


class Coupled:
    """Granularity: a unit is a channel, with all that writes it. Channels of the network's outputs stay whole.

    Groups are keyed by their first masked tensor. A channel that is dropped is exactly 0 wherever it is written.
    """

    def __init__(self, groups: Mapping[str, Group], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.groups = dict(groups)
        self.shapes = dict(shapes)

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
            raise ValueError(f"no target has filters that can be dropped as channels: {', '.join(targets)}")
        return units

    def choose(self, units: Mapping[str, Tensor], counts: Mapping[str, int]) -> Units:
        """The best channels of each group, ties to the first."""
        return {key: top_k(unit, counts[key]) for key, unit in units.items()}

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
                    rows[index.to(keep.device)] &= keep[channel.to(keep.device)].reshape(-1, *[1] * (rows.dim() - 1))
            for name, (index, channel) in group.companions.items():
                if name not in masks:
                    masks[name] = torch.ones(self.shapes[name], dtype=torch.bool, device=keep.device)
                masks[name][index.to(keep.device)] &= keep[channel.to(keep.device)]
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


def couple(model: nn.Module, targets: Targets, example_input: Any) -> Coupled:
    """Find the channels of a model that can be dropped as a whole, by tracing it on an example input.

    Left whole are the network's outputs, what attention, recurrent or embedding layers share in, channels of which some
    writer is the input, no target or tied, and those that come out of the trace wrong, as behind a channel shuffle.

    Raises:
        ValueError: a model that does not take the input or cannot be traced.
    """
    parameters = _named(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    graph, copied, outputs = _trace(model, example_input)
    groups: dict[str, Group] = {}
    for members in _traced_groups(graph, copied, model):
        group = _read_group(members, targets, names, outputs)
        if group is not None:
            key = min(group.rows, key=list(targets).index)
            groups[key] = group
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    ordered = {name: groups[name] for name in targets if name in groups}
    tight = _tight(Coupled(ordered, shapes), targets, copied, example_input)
    return Coupled({name: group for name, group in ordered.items() if name in tight}, shapes)


def norms_behind(model: nn.Module, targets: Targets, example_input: Any) -> dict[str, Tensor]:
    """The scale of the batch norm that follows each target, by the target's name."""
    scales: dict[str, Tensor] = {}
    by_module = {id(target.owners[0][0]): name for name, target in targets.items()}
    graph, copied, _ = _trace(model, example_input)
    originals = {id(twin): original for twin, original in zip(copied.modules(), model.modules(), strict=True)}
    for node in graph.module2node.values():
        name = by_module.get(id(originals.get(id(node.module))))
        for after in node.outputs if name else ():
            norm = originals.get(id(after.module))
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and isinstance(norm.weight, Tensor):
                scales[str(name)] = norm.weight
    return scales


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: target.parameter for name, target in find_targets(model, include="*").items()}


def _trace(model: nn.Module, example_input: Any) -> tuple[Any, nn.Module, set[int]]:
    """The dependency graph of a copy, the copy, and the ids of the graph's modules that give the network's outputs."""
    import torch_pruning

    # On a copy: tracing runs the model with hooks of its own.
    copied = copy.deepcopy(model).eval()
    graph = torch_pruning.DependencyGraph()
    results: list[Any] = []
    made: list[tuple[Any, int]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        made.extend((tensor.grad_fn, id(module)) for tensor in tensors_in(output))

    def run(net: nn.Module, inputs: Any) -> Any:
        handles = [module.register_forward_hook(note) for module in net.modules()]
        results.append(call(net, inputs))
        for handle in handles:
            handle.remove()
        return results[0]

    with warnings.catch_warnings(), undisturbed(copied):
        warnings.simplefilter("ignore")  # its notices on parameters outside of layers
        try:
            graph.build_dependency(copied, example_inputs=example_input, forward_fn=run, verbose=False)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if not results:
                raise ValueError(f"the model does not take the example input: {said}") from error
            raise ValueError(
                f"the model cannot be traced for filters that belong together, torch-pruning says {said}; "
                "without example_input filters are dropped by themselves"
            ) from error
    made += [(node.grad_fn, id(node.module)) for node in graph.module2node.values()]
    last = {tensor.grad_fn for tensor in tensors_in(results)} - {None}
    return graph, copied, {module for made_by, module in made if made_by in last}


def _traced_groups(graph: Any, copied: nn.Module, model: nn.Module) -> Iterator[list[Member]]:
    originals = {id(twin): original for twin, original in zip(copied.modules(), model.modules(), strict=True)}
    parameters = {id(twin): original for twin, original in zip(copied.parameters(), model.parameters(), strict=True)}
    for group in graph.get_all_groups():
        members = []
        for item in group:
            twin = item.dep.target.module
            found = parameters.get(id(twin)) if isinstance(twin, nn.Parameter) else originals.get(id(twin), twin)
            writes = graph.is_out_channel_pruning_fn(item.dep.handler)
            members.append(Member(twin, found, writes, list(item.idxs), list(item.root_idxs)))
        yield members


def _read_group(
    members: list[Member], targets: Targets, names: Mapping[int, str], outputs: Collection[int]
) -> Group | None:
    """The group of these members, or None where its channels cannot be dropped."""
    by_module = {id(target.owners[0][0]): target for target in targets.values() if _writes_alone(target)}
    if any(None in member.channels for member in members):
        return None  # heads of attention that are repeated
    group = Group(channels=1 + max(max(member.channels) for member in members), members=members)
    read: set[int] = set()
    for twin, module, writes, index, channels in members:
        pairs = (torch.tensor(index), torch.tensor(channels))
        if writes and id(twin) in outputs:
            return None
        if isinstance(module, _LAYERS) and not writes:
            read.update(channels)
        elif isinstance(module, _LAYERS):
            target = by_module.get(id(module))
            if target is None or max(index) >= target.parameter.shape[target.output_axis]:
                return None
            _add(group.rows, target.name, pairs)
            _add_companions(group, module, ("bias",), pairs, names)
        elif isinstance(module, NORMS):
            if any(parameter.dim() != 1 for parameter in module.parameters(recurse=False)):
                return None
            _add_companions(group, module, ("weight", "bias"), pairs, names)
        elif not (type(module).__name__ in _FREE_OF_WEIGHTS or isinstance(module, nn.PReLU)):
            return None  # attention, recurrent, embedding, a bare parameter
    return group if group.rows and len(read) == group.channels else None


def _writes_alone(target: Target) -> bool:
    """Whether a target is the weight of one layer whose filters are rows and write a channel each."""
    (module, attribute), *others = target.owners
    if others or attribute != "weight" or not isinstance(module, _LAYERS):
        return False
    if isinstance(module, nn.Linear) or module.groups == 1:
        return True
    # Of a depthwise convolution a channel is read and written: both numbers must agree.
    return not module.transposed and (module.groups < module.out_channels or module.in_channels == module.out_channels)


def _tight(coupled: Coupled, targets: Targets, copied: nn.Module, example: Any) -> set[str]:
    """The groups of which a dropped channel is the same wherever it is read, whatever input and other weights are.

    Half of the channels are dropped, and two networks of different random weights run on different random inputs.
    """
    generator = torch.Generator().manual_seed(0)
    dropped = {
        key: torch.randperm(g.channels, generator=generator) < (g.channels + 1) // 2
        for key, g in coupled.groups.items()
    }
    masks = coupled.expand({key: ~drop for key, drop in dropped.items()}, targets) if dropped else {}
    seen: list[dict[tuple[str, int], list[Tensor]]] = []
    for seed in (1, 2):
        held: dict[tuple[str, int], list[Tensor]] = {}
        seen.append(held)
        with undisturbed(copied, seed), torch.no_grad():
            _redraw(copied, masks)
            handles = [
                _record(member, dropped[key], held.setdefault((key, place), []))
                for key, group in coupled.groups.items()
                for place, member in enumerate(group.members)
                if not member.writes
            ]
            try:
                call(copied, random_like(example))
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                raise ValueError(f"the model does not run on random numbers in place of the example: {said}") from error
            finally:
                for handle in handles:
                    handle.remove()
    first, second = seen
    leaking = {place[0] for place in first if not _same(first[place], second[place])}
    return set(coupled.groups) - leaking


def _redraw(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Random positive weights whose sums stay near 1, so that every path is open; dropped ones are 0."""
    for name, parameter in _named(net).items():
        parameter.uniform_(0.5, 1.5).div_(parameter[0].numel() if parameter.dim() > 1 else 1)
        if name in masks:
            parameter.masked_fill_(~masks[name].to(parameter.device), 0)
    for module in net.modules():
        if isinstance(module, NORMS) and isinstance(mean := getattr(module, "running_mean", None), Tensor):
            mean.uniform_(-1.5, -0.5)


def _record(member: Member, dropped: Tensor, held: list[Tensor]) -> Any:
    """Keep what a layer reads of the dropped channels."""
    pairs = zip(member.places, member.channels, strict=True)
    index = torch.tensor([place for place, channel in pairs if dropped[channel]], dtype=torch.long)
    axis = -1 if isinstance(member.twin, nn.Linear) else -len(member.twin.kernel_size) - 1

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        held.append(args[0].movedim(axis, -1)[..., index.to(args[0].device)])

    return member.twin.register_forward_pre_hook(keep)


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether every call read the same."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def random_like(example: Any) -> Any:
    """Random numbers in [0.5, 1.5) in place of all floating-point ones."""
    if isinstance(example, Tensor):
        return torch.rand_like(example) + 0.5 if example.is_floating_point() else example
    if isinstance(example, Mapping):
        return {key: random_like(part) for key, part in example.items()}
    return tuple(random_like(part) for part in example) if isinstance(example, (tuple, list)) else example


def _add(held: dict[str, tuple[Tensor, Tensor]], name: str, pairs: tuple[Tensor, Tensor]) -> None:
    before = held.get(name)
    held[name] = pairs if before is None else (torch.cat([before[0], pairs[0]]), torch.cat([before[1], pairs[1]]))


def _add_companions(
    group: Group, module: nn.Module, attributes: tuple[str, ...], pairs: tuple[Tensor, Tensor], names: Mapping[int, str]
) -> None:
    for attribute in attributes:
        parameter = getattr(module, attribute, None)
        if isinstance(parameter, nn.Parameter):
            _add(group.companions, names[id(parameter)], pairs)
