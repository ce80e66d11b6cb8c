"""Labels of channels: sets of them that go together, and why some stay whole. `channels` gives them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Site(NamedTuple):
    """A layer or norm: its path, the first label of its outputs and their number, and the same of its inputs.

    What treats each channel by itself has no inputs of its own: they are its outputs.
    """

    path: str
    module: nn.Module
    first: int
    outputs: int
    first_input: int = 0
    inputs: int = 0

    def writes(self) -> Tensor:
        """[outputs]: their labels."""
        return torch.arange(self.first, self.first + self.outputs)

    def reads(self) -> Tensor:
        """[inputs]: their labels."""
        return torch.arange(self.first_input, self.first_input + self.inputs)


class Labels:
    """Sets of labels, and why some of them stay whole. Label 0 is that of numbers which belong to no channel.

    held: by the first label of a set, why its channels cannot be dropped.
    kept: why they can be dropped, being 0 wherever they are written then, but not be taken out.
    """

    def __init__(self) -> None:
        self.parents = [0]
        self.held: dict[int, str] = {}
        self.kept: dict[int, str] = {}

    def new(self, count: int) -> int:
        """So many labels more; the first of them."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return first

    def find(self, label: int) -> int:
        """The first label of the set that a label is in."""
        parents = self.parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def roots(self) -> Tensor:
        """[labels]: of each the first of its set."""
        return torch.tensor([self.find(label) for label in range(len(self.parents))])

    def join(self, ones: Tensor, others: Tensor, why: str = "") -> None:
        """Make one set of each pair; what would be joined to no channel is held."""
        # Each pair once, as one number: feature maps of millions of entries hold few of them.
        ones, others, count = ones.reshape(-1), others.reshape(-1), len(self.parents)
        differ = ones != others
        pairs = torch.unique(ones[differ] * count + others[differ])
        for one, other in zip((pairs // count).tolist(), (pairs % count).tolist(), strict=True):
            if not one or not other:
                self.held.setdefault(self.find(one or other), why)
                continue
            first, second = sorted((self.find(one), self.find(other)))
            if first != second:
                self.parents[second] = first
                for reasons in (self.held, self.kept):
                    if (reason := reasons.pop(second, "")) and first not in reasons:
                        reasons[first] = reason

    def hold(self, labels: Tensor, why: str) -> None:
        """These channels stay whole."""
        self._mark(self.held, labels, why)

    def keep(self, labels: Tensor, why: str) -> None:
        """These channels may be dropped, but not taken out."""
        self._mark(self.kept, labels, why)

    def _mark(self, reasons: dict[int, str], labels: Tensor, why: str) -> None:
        for label in set(torch.unique(labels).tolist()) - {0}:
            reasons.setdefault(self.find(label), why)


@dataclass
class Trace:
    """What a pass showed.

    sites: layers and norms by the identity of their module, in the order of the model.
    called: the paths of the layers that the pass came by.
    entries: [entries] labels of each bias, norm parameter and running statistic, by its identity.
    parts: [groups, labels of each]: the inputs, and the outputs, of grouped convolutions.
    chunks: [chunks, labels of each]: what was split into chunks of one size.
    behind: the module of the batch norm that is given a layer's outputs as they are, by the layer's path.
    """

    labels: Labels = field(default_factory=Labels)
    sites: dict[int, Site] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    entries: dict[int, Tensor] = field(default_factory=dict)
    parts: list[Tensor] = field(default_factory=list)
    chunks: list[Tensor] = field(default_factory=list)
    behind: dict[str, nn.Module] = field(default_factory=dict)
