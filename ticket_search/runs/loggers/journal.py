"""What a logger has been sent of a run: a file in the run's folder, by which a resumed run sends nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from supermask.tickets.strict_json import parse_json

from ...contract.errors import RequestError


class Journal:
    """The lines of a journal: the tracker's name of its run, then a step and its tags for each row that was sent.

    A line is written after its row has been sent: what a kill leaves in doubt is sent once more, and never missing. Of
    each tag the steps only rise, so that the last of them tells what has been sent. `rows` counts the rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = ""
        self.rows = 0
        # Of the processes before this one.
        self._last: dict[str, int] = {}
        self._read()

    def _read(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        try:
            first, *lines = [parse_json(line) for line in whole.splitlines()] or [{"id": ""}]
            self.id, self.rows = str(first["id"]), len(lines)
            for line in lines:
                self._last |= dict.fromkeys(map(str, line["tags"]), int(line["step"]))
        except (ValueError, TypeError, KeyError) as error:
            raise RequestError(f"{self.path} is damaged: {type(error).__name__}: {error}") from None
        if len(whole) < len(data):  # a process was killed while it wrote a line
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def begin(self, name: str) -> None:
        """Note the tracker's name of its run, where it is not there yet."""
        if not self.id:
            self.id = name
            self._add({"id": name})

    def unsent(self, step: int, tags: Iterable[str]) -> list[str]:
        """Of the tags of a row those that no process before has sent."""
        return [tag for tag in tags if step > self._last.get(tag, -1)]

    def note(self, step: int, tags: Iterable[str]) -> None:
        """Note that a row was sent."""
        self.rows += 1
        self._add({"step": step, "tags": [*tags]})

    def _add(self, line: dict[str, object]) -> None:
        with self.path.open("ab") as file:
            file.write((json.dumps(line) + "\n").encode())
