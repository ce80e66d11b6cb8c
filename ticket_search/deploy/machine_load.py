"""The load of this machine, which is reported beside every timing."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import asdict, dataclass

from ..contract.keyed import Keyed

# Above any of these limits, timings depend on the other programs as much as on ours.
LOAD_PER_CORE = 0.3
STRETCH = 1.1
WAITED = 0.02


@dataclass(frozen=True)
class Load(Keyed):
    """The load of a machine before a measurement.

    `average` counts the programs that ran or waited during the last minute, None where the system does not tell.
    `stretch` is the median time of a fixed piece of work over its shortest time, and `waited` the share of that time in
    which the work did not run.
    """

    average: float | None
    cores: int
    stretch: float
    waited: float

    @property
    def busy(self) -> bool:
        """Whether the machine is too busy for a verdict about speed."""
        crowded = self.average is not None and self.average > LOAD_PER_CORE * self.cores
        return crowded or self.stretch > STRETCH or self.waited > WAITED

    def __str__(self) -> str:
        average = "unknown" if self.average is None else f"{self.average:.2f}"
        return (
            f"load average {average} on {self.cores} cores; a fixed piece of work takes {self.stretch:.2f} times its "
            f"shortest time and waits for {self.waited:.0%} of it"
        )

    def as_dict(self) -> dict[str, float | None]:
        """The numbers, and whether the machine is busy."""
        return {**asdict(self), "busy": self.busy}


def measure_load(times: int = 30) -> Load:
    """Measure the load average, and how much the times of the same few milliseconds of work vary over `times` runs."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    walls, works = [], []
    for _ in range(times):
        wall, work = time.perf_counter(), time.thread_time()
        sum(i * i for i in range(50_000))
        walls.append(time.perf_counter() - wall)
        works.append(time.thread_time() - work)
    waited = max(0.0, 1 - sum(works) / sum(walls))
    return Load(average, os.cpu_count() or 1, statistics.median(walls) / min(walls), waited)
