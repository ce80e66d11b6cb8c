"""How long calls take, side by side, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")
# A turn repeats a call for so many seconds and at most so often: who runs a network runs it again and again, and finds
# its weights in the caches.
_TURN, _REPEATS = 0.01, 20


def time_in_turns(
    calls: Mapping[Key, Callable[[], Any]],
    seconds: float,
    device: torch.device,
    *,
    fewest: int = 5,
    most: int = 20_000,
    one_more: Callable[[], None] = lambda: None,
) -> dict[Key, list[float]]:
    """Seconds of each call, made in turns and in another order in each round.

    A turn begins with a call that is not counted, unless that takes 10 ms or more by itself.

    Args:
        calls: what to run.
        seconds: how long each call is measured, all together so many times their number.
        device: where they run: a GPU is waited for.
        fewest: rounds at least, whatever the time.
        most: no further round after so many times of a call.
        one_more: called 100 times, evenly over the time.
    """
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def once(run: Callable[[], Any]) -> float:
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        return time.perf_counter() - start

    order, names = random.Random(0), list(calls)
    times: dict[Key, list[float]] = {name: [] for name in names}
    begin, box, told, turn = time.perf_counter(), seconds * len(names), 0, 0
    while names and (turn < fewest or (time.perf_counter() - begin < box and max(map(len, times.values())) < most)):
        turn += 1
        # What ran before leaves its own data in the caches: no call may always follow the same one.
        order.shuffle(names)
        for name in names:
            cold = once(calls[name])
            repeats = min(_REPEATS, int(_TURN / cold)) if cold else _REPEATS
            times[name] += [once(calls[name]) for _ in range(repeats)] or [cold]
        spent = min(1.0, (time.perf_counter() - begin) / box)
        for _ in range(told, told := max(told, int(100 * spent))):
            one_more()
    for _ in range(told, 100):
        one_more()
    return times
