"""Whether a subnetwork is faster than the whole network, from the times of its variants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..contract.metric import ACCURACY, Metric
from .bench_result import Best, Row, Sizes

JUDGED = 64
# The relative difference of two values of a metric that come of outputs which are equal but for their last digits.
_ROUNDING = 1e-4
_Timed = Mapping[tuple[str, str], Row]


def judge(
    rows: Sequence[Row], sizes: Sizes, batch: int = JUDGED, busy: str | None = None, metric: Metric = ACCURACY
) -> Best:
    """The best choice at a batch size, and one sentence about it.

    The best is the fastest variant that is at least as good as the masked network by the metric. It is a gain where its
    median lies below the first quartile, and its third quartile below the median, of the whole network, dense or
    masked, in every engine: what an engine gains on the whole network is no gain of the subnetwork.

    Args:
        rows: what was measured.
        sizes: of the ticket's network.
        batch: the batch size whose rows count.
        busy: how busy the machine was, or None where it was not.
        metric: what the networks were measured by. Its values are those of equal outputs, rounded otherwise: of another
            metric than accuracy, which counts, they may differ by that.
    """
    timed = {(row.variant, row.engine): row for row in rows if row.batch == batch and row.median_ms is not None}
    dense = [row for row in timed.values() if row.variant == "dense"]
    reference = min(dense, key=_median, default=None)
    best = _find_best(timed, metric)
    if best is None or reference is None or best.q3 is None:
        return Best(batch=batch, gain=False, sentence=f"no verdict at batch size {batch}: nothing could be measured")
    # No engine makes use of zeros, so the masked network is a dense one too: the faster of the two must be beaten.
    whole = [row for row in timed.values() if row.variant in ("dense", "masked")]
    gain = best.variant not in ("dense", "masked") and all(
        row.q1 is not None and _median(best) < row.q1 and best.q3 < _median(row) for row in whole
    )
    eager = timed.get(("dense", "eager"))
    to_eager = None if eager is None else _median(eager) / _median(best)
    to_fastest = _median(reference) / _median(best)
    if gain:
        sentence = (
            f"best on this machine at batch size {batch}: {best.variant} in {best.engine}, {_median(best):.3g} ms, "
        )
        sentence += "" if to_eager is None else f"{to_eager:.2f} times as fast as dense in eager, "
        sentence += f"{to_fastest:.2f} times as fast as dense in its fastest engine ({reference.engine})"
    else:
        reasons = "; ".join(_why_none(rows, timed, sizes, batch))
        sentence = f"no gain on this machine at batch size {batch}, because {reasons}"
        if reference.engine != "eager" and eager is not None:
            ratio = _median(eager) / _median(reference)
            sentence += f". {reference.engine} alone runs the dense network {ratio:.2f} times as fast as eager"
    if busy:
        sentence += f". The machine was busy ({busy}): measure again before you rely on this"
    return Best(
        variant=best.variant, engine=best.engine, batch=batch, median_ms=best.median_ms, times_dense_eager=to_eager,
        times_fastest_dense=to_fastest, fastest_dense_engine=reference.engine, gain=gain, sentence=sentence,
    )  # fmt: skip


def _find_best(timed: _Timed, metric: Metric) -> Row | None:
    """The fastest variant but the dense one that is at least as good as the masked network."""
    wanted = next((row.test_metric for row in timed.values() if row.variant == "masked"), None)
    loose = 0.0 if wanted is None or metric.is_accuracy else _ROUNDING * abs(wanted)
    good = [
        row
        for row in timed.values()
        if row.variant != "dense"
        and (
            wanted is None
            or (row.test_metric is not None and metric.merit(row.test_metric) >= metric.merit(wanted) - loose)
        )
    ]
    return min(good, key=_median, default=None)


def _why_none(rows: Sequence[Row], timed: _Timed, sizes: Sizes, batch: int) -> Iterator[str]:
    before, after = sizes.parameters, sizes.compacted_parameters
    units, dead = sizes.units, sizes.dead_units
    if before == after:
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
            at = f" at density {sizes.density:.3g}" if variant == "sparse" else ""
            less = f" with {after / before:.0%} of the parameters" if variant == "compacted" and after else ""
            time = f"{ratio:.2f} times as long as the dense one (in {engine})"
            yield f"the {variant} network{at}{less} takes at best {time}"
        elif not pairs and reasons:
            yield f"{variant}: {'; '.join(sorted(reasons))}"
        elif not pairs:
            yield f"the {variant} network was not measured"


def _median(row: Row) -> float:
    assert row.median_ms is not None
    return row.median_ms
