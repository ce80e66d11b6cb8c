"""What a subnetwork gains where it runs, from the times of its variants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

JUDGED = 64


@dataclass(frozen=True)
class Row:
    """A variant in an engine at a batch size: milliseconds a batch (median, quartiles), or why there are none."""

    variant: str
    engine: str
    batch: int
    median_ms: float | None = None
    q1: float | None = None
    q3: float | None = None
    samples_per_second: float | None = None
    accuracy: float | None = None
    reason: str | None = None


def judge(
    rows: Sequence[Row], sizes: Mapping[str, Any], batch: int = JUDGED, busy: str | None = None
) -> dict[str, Any]:
    """The best choice at a batch size, and one sentence about it.

    A subnetwork gains where its fastest variant, at the masked network's accuracy or above, has three quarters of its
    times below the median, and half of them below the first quartile, of every engine that runs the whole network,
    masked or not: an engine's own gain is no gain of the subnetwork.

    Args:
        rows: what was measured.
        sizes: `density`, `parameters`, `compacted_parameters`, `units` and `dead_units`, None where unknown.
        batch: which rows count.
        busy: how busy the machine was, if it was.

    Returns:
        `variant`, `engine`, `batch`, `median_ms`, `times_dense_eager`, `times_fastest_dense` (above 1 is faster; None
        where not measured), `fastest_dense_engine`, `gain`, `sentence`.
    """
    timed = {(row.variant, row.engine): row for row in rows if row.batch == batch and row.median_ms is not None}
    dense = [row for row in timed.values() if row.variant == "dense"]
    reference = min(dense, key=_median, default=None)
    wanted = next((row.accuracy for row in timed.values() if row.variant == "masked"), None)
    same = [
        row
        for row in timed.values()
        if row.variant != "dense" and (wanted is None or (row.accuracy is not None and row.accuracy >= wanted))
    ]
    best = min(same, key=_median, default=None)
    if best is None or reference is None or best.q3 is None or reference.q1 is None:
        sentence = f"no verdict at batch {batch}: nothing could be measured"
        nothing = ("variant", "engine", "median_ms", "times_dense_eager", "times_fastest_dense", "fastest_dense_engine")
        return {**dict.fromkeys(nothing), "batch": batch, "gain": False, "sentence": sentence}
    # To every engine the masked network is a dense one too: the faster of the two must be beaten.
    whole = [row for row in timed.values() if row.variant in ("dense", "masked")]
    gain = best.variant not in ("dense", "masked") and all(
        row.q1 is not None and _median(best) < row.q1 and best.q3 < _median(row) for row in whole
    )
    eager = timed.get(("dense", "eager"))
    to_eager = None if eager is None else _median(eager) / _median(best)
    to_fastest = _median(reference) / _median(best)
    against = ([] if to_eager is None else [f"{to_eager:.2f} times as fast as dense in eager"]) + [
        f"{to_fastest:.2f} times as fast as the fastest dense ({reference.engine})"
    ]
    if gain:
        sentence = f"best here at batch {batch}: {best.variant} in {best.engine}, {_median(best):.3g} ms, "
        sentence += ", ".join(against)
    else:
        sentence = (
            f"no gain on this machine at batch {batch}, because {'; '.join(_why_none(rows, timed, sizes, batch))}"
        )
        if reference.engine != "eager" and eager is not None:
            sentence += (
                f". {reference.engine} alone runs the dense network {_median(eager) / _median(reference):.2f} "
                "times as fast as eager"
            )
    if busy:
        sentence += f". The machine was busy ({busy}): measure again before you rely on it"
    return {
        "variant": best.variant, "engine": best.engine, "batch": batch, "median_ms": best.median_ms,
        "times_dense_eager": to_eager, "times_fastest_dense": to_fastest, "fastest_dense_engine": reference.engine,
        "gain": gain, "sentence": sentence,
    }  # fmt: skip


def _why_none(
    rows: Sequence[Row], timed: Mapping[tuple[str, str], Row], sizes: Mapping[str, Any], batch: int
) -> Iterator[str]:
    before, after = sizes.get("parameters"), sizes.get("compacted_parameters")
    units, dead = sizes.get("units"), sizes.get("dead_units")
    if before is not None and before == after:
        yield "compaction could remove nothing" + (f": all {units:,} units are alive" if units and not dead else "")
    for variant in ("compacted", "sparse"):
        pairs = [
            (_median(row) / _median(timed["dense", engine]), engine)
            for (each, engine), row in timed.items()
            if each == variant and ("dense", engine) in timed
        ]
        reasons = {row.reason for row in rows if row.variant == variant and row.batch == batch and row.reason}
        if pairs and not (variant == "compacted" and before == after):
            ratio, engine = min(pairs)
            at = f" at density {sizes['density']:.3g}" if variant == "sparse" else ""
            less = (
                f" with {after / before:.0%} of the parameters" if variant == "compacted" and before and after else ""
            )
            yield f"the {variant} network{at}{less} takes {ratio:.2f} of the dense time in {engine}, at best"
        elif not pairs and reasons:
            yield f"{variant}: {'; '.join(sorted(reasons))}"
        elif not pairs:
            yield f"the {variant} network was not measured"


def _median(row: Row) -> float:
    assert row.median_ms is not None
    return row.median_ms
