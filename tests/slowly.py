"""A network that trains slowly while a file `slowly` is in the current folder: long enough to be stopped meanwhile.

search("edge-popup", "slowly:network")
"""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor, nn

from ticket_search.cli import main as ticket
from ticket_search.runs.progress import Progress

# Within an epoch of ten steps a state is due: see Run.save_training.
SECONDS = 0.12


def pause() -> None:
    if Path("slowly").exists():
        time.sleep(SECONDS)


class Slowly(nn.Sequential):
    """Layers one after another, with a pause before each training step."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            pause()
        return super().forward(x)


def network(classes: int) -> Slowly:
    return Slowly(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, classes))


def main() -> None:
    """The command line, with a pause after each step of any network."""
    advance_to = Progress.advance_to

    def slowly(self: Progress, step: int) -> None:
        advance_to(self, step)
        pause()

    Progress.advance_to = slowly
    ticket()
