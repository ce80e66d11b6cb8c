"""What other packages declare by entry points: methods, data sets, and the scores that a flag may name.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from supermask.plugins.entry_points import SCORES, Declaration, DeclarationError, Group, declarations

from .errors import RequestError, nearest_hint

METHODS = Group("ticket_search.methods", "method")
DATA = Group("ticket_search.data", "data set")

# The keys of `supermask.scores.SCORES`, which imports torch.
OWN_SCORES = (
    "magnitude", "l1", "l2", "random", "snip", "taylor", "movement", "grasp", "synflow", "bn-scale",
    "large-final", "small-final", "large-init", "small-init", "large-init-large-final", "small-init-small-final",
    "magnitude-increase", "large-final-same-sign", "large-final-diff-sign", "magnitude-increase-same-sign",
    "magnitude-increase-diff-sign",
)  # fmt: skip
LOOKS_AT_DATA = ("snip", "grasp", "taylor", "movement")


def looks_at_data(score: str) -> bool:
    """Whether a score may go through batches of training samples: one of another package may always."""
    return score in LOOKS_AT_DATA or score not in OWN_SCORES


def load_declared(declaration: Declaration) -> Any:
    """The object that another package declares.

    Raises:
        RequestError: it cannot be used, with the reason.
    """
    try:
        return declaration.load()
    except DeclarationError as error:
        raise RequestError(str(error)) from None


@dataclass(frozen=True)
class ScoreName:
    """The values of a flag that names a score: those of this package that a method takes, and all of other packages.

        score: Annotated[str, ScoreName(("magnitude", "l2"))] = Field("magnitude", description=...)

    A score of another package is imported where it is asked for, and only there.
    """

    own: tuple[str, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """All of them, as help lists them."""
        declared = declarations(SCORES, own=OWN_SCORES)
        return (*self.own, *(name for name in declared if name not in OWN_SCORES))

    def check(self, name: str) -> str:
        """The name.

        Raises:
            ValueError: an unknown one, or one that cannot be used, with the reason.
        """
        declared = declarations(SCORES, own=OWN_SCORES)
        if name in declared:
            declared[name].load_function()
        elif name not in self.own:
            raise ValueError(f"expected {', '.join(self.choices)}{nearest_hint(name, self.choices)}")
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check a text by `check`."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))
