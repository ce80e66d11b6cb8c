"""The console that everything is printed with: it shows any text, and does nothing that a text says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from supermask.masks.texts import harmless


class HarmlessConsole(Console):
    r"""A console for texts of unknown origin: names in a ticket, a run's folder, a configuration, a table of numbers.

    Escape sequences and all other control characters come out as `\x1b`, so that no name clears the screen, hides a
    line or sets the title of the window. Line breaks stay, and so do the styles that the program itself asks for.
    Brackets are never read as markup, nor `:names:` as pictures.
    """

    def __init__(self, stderr: bool = False, width: int | None = None, **options: Any) -> None:
        super().__init__(stderr=stderr, width=width, emoji=False, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as it is measured and laid out: with its escapes."""
        return super().render_str(harmless(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written in the end, whatever it was made of."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))
