"""The load of this machine, which is reported beside every timing."""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..contract.keyed import Keyed

# Above any of these limits, timings depend on the other programs as much as on ours.
LOAD_PER_CORE = 0.3
STRETCH = 1.2
WAITED = 0.02
_BYTES = bytes(1 << 17)
_SECONDS = 0.15


@dataclass(frozen=True)
class Load(Keyed):
    """The load of a machine before a measurement.

    `average` counts the programs that ran or waited during the last minute, this one and a search before it among them,
    and `others` those that do beside this one while it measures; None where the system does not tell. `stretch` is the
    median time of a fixed piece of work over its shortest time, and `waited` the share of that time in which the work
    did not run.
    """

    average: float | None
    cores: int
    stretch: float
    waited: float
    others: float | None = None

    @property
    def busy(self) -> bool:
        """Whether the machine is too busy for a verdict about speed."""
        beside = self.average if self.others is None else self.others
        crowded = beside is not None and beside > LOAD_PER_CORE * self.cores
        return crowded or self.stretch > STRETCH or self.waited > WAITED

    def __str__(self) -> str:
        average = "unknown" if self.average is None else f"{self.average:.2f}"
        now = "" if self.others is None else f", {self.others:.1f} other programs at a time now"
        return (
            f"load average {average} on {self.cores} cores{now}; a fixed piece of work takes {self.stretch:.2f} times "
            f"its shortest time and waits for {self.waited:.0%} of it"
        )

    def as_dict(self) -> dict[str, float | None]:
        """The numbers, and whether the machine is busy."""
        return {**asdict(self), "busy": self.busy}


def measure_sharing(one: int, several: int, rounds: int = 3) -> float:
    """By how much a program of `one` thread, or more, slows down where as many as `several` threads work at once.

    A fixed piece of work is done again and again by so many threads, alternately; other programs, cores that are two
    halves of one, and limits on what this user may use all count, as they would for a program that trains.

    Returns:
        At least 1.
    """
    few = many = 0.0
    for _ in range(rounds):
        few += _work_done(one)
        many += _work_done(several)
    return max(1.0, few / max(many, 1e-9))


def _work_done(threads: int) -> float:
    """How often a thread does a piece of work, of so many that do it at the same time."""
    counts, together = [0] * threads, threading.Barrier(threads)

    def work(thread: int) -> None:
        together.wait()
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            hashlib.sha256(_BYTES)  # which lets other threads work
            counts[thread] += 1

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return statistics.fmean(counts)


def measure_load(times: int = 30) -> Load:
    """Measure the load average, and how much the times of the same few milliseconds of work vary over `times` runs."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    walls, works, others = [], [], []
    for _ in range(times):
        others += _count_others()
        wall, work = time.perf_counter(), time.thread_time()
        sum(i * i for i in range(50_000))
        walls.append(time.perf_counter() - wall)
        works.append(time.thread_time() - work)
    waited = max(0.0, 1 - sum(works) / sum(walls))
    beside = statistics.fmean(others) if others else None
    return Load(average, os.cpu_count() or 1, statistics.median(walls) / min(walls), waited, beside)


def _count_others() -> list[int]:
    """How many programs but this one run or wait for a core at this moment; nothing where the system does not tell."""
    try:
        running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
    except OSError:
        return []
    return [max(0, int(running) - 1)]
