"""How busy this machine is, and what it is: what stands beside every timing."""

from __future__ import annotations

import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ticket_search.deploy.machine_load import Load as Load
from ticket_search.deploy.machine_load import measure_load as measure_load


def machine() -> dict[str, str | int | list[str]]:
    """What a timing depends on: processor, versions, threads, the instructions NumPy uses, and the date."""
    return {
        "cpu": cpu_name(),
        "numpy_simd": np.show_config(mode="dicts")["SIMD Extensions"]["found"],
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe_device(device: str) -> dict[str, str]:
    """The processor that does the work, and for a GPU the CUDA that it was driven by."""
    if device == "cpu":
        return {"device": cpu_name()}
    return {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def interleaved(calls: dict[str, Callable[[int], object]], inputs: int, rounds: int, medians: int) -> dict[str, float]:
    """Seconds that each call takes, given 0 ... `inputs` - 1: the best of several medians.

    A median is over `rounds` rounds; in each round all calls take turns, with every input once.
    """
    best = dict.fromkeys(calls, math.inf)
    for _ in range(medians):
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name] += [seconds(call, i) for i in range(inputs)]
        best = {name: min(best[name], statistics.median(times[name])) for name in calls}
    return best


def best_of(clocks: dict[str, Callable[[], float]], quick: bool) -> dict[str, float]:
    """Seconds by calls that time themselves, in turns: each first once for nothing, then the best of 5 medians of 3."""
    for clock in clocks.values():
        clock()
    best = dict.fromkeys(clocks, math.inf)
    for _ in range(1 if quick else 5):
        turns = [{name: clock() for name, clock in clocks.items()} for _ in range(1 if quick else 3)]
        best = {name: min(best[name], statistics.median(turn[name] for turn in turns)) for name in clocks}
    return best


def judge_bounds(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence about the rows whose `ratio` has a bound, `must`, and about those that reach their `goal`."""
    bound = [row for row in rows if row["must"] is not None]
    over = [f"{row['row']} ({row['ratio']:.2f})" for row in bound if row["ratio"] > row["must"]]
    reached = sum(row["goal"] is not None and row["ratio"] <= row["goal"] for row in bound)
    return (
        f"{len(bound) - len(over)} of {len(bound)} rows are within what they must be"
        + (f", but not {', '.join(over)}" if over else "")
        + f"; {reached} reach their goal"
    )


def seconds(call: Callable[[int], object], given: int) -> float:
    start = time.perf_counter()
    call(given)
    return time.perf_counter() - start
