"""The filters and hidden units that a method drops as a whole: which of them a network has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import supermask
from supermask import choosing

from ..contract.errors import RequestError
from ..contract.flags import Config
from .at_init import example_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask import Targets
    from supermask.choosing.coupling import Coupled

    from ..data.samples import Samples


@dataclass(frozen=True)
class Filters:
    """The channels of a network that can be dropped, by the first tensor that writes them.

    `norms` are the scales of the batch norms behind the tensors, where only those with one can be dropped.
    """

    shape: Coupled
    targets: Targets
    example: Tensor
    norms: dict[str, Tensor]

    @property
    def channels(self) -> dict[str, int]:
        """How many there are in each layer."""
        return {key: group.channels for key, group in self.shape.groups.items()}


def find_filters(model: nn.Module, data: Samples, config: Config, *, normed: bool) -> Filters:
    """The channels of the network that can be dropped.

    Args:
        model: the network.
        data: of which it is given two samples.
        config: of the method, which may name what is masked.
        normed: leave whole what has no batch norm right behind it.

    Raises:
        RequestError: there are none; why is said of each layer.
    """
    example = example_of(data)
    norms: dict[str, Tensor] = {}
    try:
        targets = supermask.find_targets(model, config.include or None, config.exclude or None)
        shape = choosing.coupling.couple(model, targets, example)
        if normed:
            norms = choosing.coupling.norms_behind(model, targets, example)
            left = {name: "no batch norm stands behind it" for name in targets if name not in norms}
            shape.left_whole = left | shape.left_whole
            shape.groups = {key: group for key, group in shape.groups.items() if not left.keys() & group.rows.keys()}
    except ValueError as error:
        raise RequestError(f"{config.method}: {error}") from None
    if not shape.groups:
        told = "; ".join(f"{name}: {why}" for name, why in shape.left_whole.items())
        raise RequestError(
            f"{config.method}: the network has no filters or hidden units that can be dropped as a whole: {told}"
        )
    return Filters(shape, targets, example, norms)
