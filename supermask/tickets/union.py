"""The masks of several tasks taken together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from ..masks.masks import Masks


class UnionMasks(Masks):
    """What any of several masks keeps, put together when it is read."""

    def __init__(self, masks: Iterable[Masks]) -> None:
        super().__init__({})
        self._parts: dict[str, list[Masks]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for each in masks:
            self._shapes |= each.shapes
            self.uncounted |= each.uncounted
            for name in each:
                self._parts.setdefault(name, []).append(each)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._masks:
            first, *others = self._parts[name]
            whole = first[name].clone()
            for other in others:
                whole |= other[name]
            self._masks[name] = whole
        return self._masks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return dict(self._shapes)
