"""Density over rounds: what each of several rounds of pruning keeps, down to the density asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..masks.targets import find_named

# f(share of the rounds done, density at the end, density at the start) -> density
Schedule = Callable[[float, float, float], float]


def exponential(done: float, density: float, start: float = 1.0) -> float:
    """The same fraction of what is left is dropped in every round (Tanaka et al., 2020; Frankle & Carbin, 2018)."""
    return float(start * (density / start) ** done)


def cubic(done: float, density: float, start: float = 1.0) -> float:
    """Fast at first, slow in the end (Zhu & Gupta, To Prune, or Not to Prune, 2017)."""
    return density + (start - density) * (1.0 - done) ** 3


def linear(done: float, density: float, start: float = 1.0) -> float:
    """The same number of units is dropped in every round."""
    return start + (density - start) * done


SCHEDULES: dict[str, Schedule] = {"exponential": exponential, "cubic": cubic, "linear": linear}


def densities_over(
    rounds: int | Sequence[float], density: float, schedule: str | Schedule = "exponential", start: float = 1.0
) -> list[float]:
    """The density after each round, the last one exactly the density asked.

        densities_over(3, 0.125)             # [0.5, 0.25, 0.125]
        densities_over([0.7, 0.4], 0.4)      # written out

    Args:
        rounds: their number, one for one shot; or the densities themselves.
        density: at the end.
        schedule: `exponential`, `cubic`, `linear`, or a function of (share of the rounds done, density, start).
        start: before the first round.

    Raises:
        ValueError: no round, densities that grow or lie outside (0, 1], or a list that ends on another density.
    """
    if isinstance(rounds, Sequence):
        given = list(rounds)
        falling = all(later <= earlier for earlier, later in zip([1.0, *given], given, strict=False))
        if not given or not falling or not given[-1] > 0 or given[-1] != density:
            raise ValueError(f"rounds {given}: expected densities in (0, 1] that never grow and end on {density}")
        return given
    if rounds < 1:
        raise ValueError(f"expected at least one round, got {rounds}")
    fall = find_named("schedule", schedule, SCHEDULES) if isinstance(schedule, str) else schedule
    return [fall(done / rounds, density, start) for done in range(1, rounds)] + [density]
