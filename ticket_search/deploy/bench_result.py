"""What `bench` finds: sizes and times of a ticket's variants, and the best of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..contract.keyed import Keyed
from ..contract.metric import Metric
from .machine_load import Load


@dataclass(frozen=True)
class Row(Keyed):
    """A variant in an engine at a batch size: milliseconds per batch, as median and quartiles.

    `test_metric` is the value of the metric on the test split, and `accuracy` the same in percent where the metric is
    accuracy, else None. Where the variant could not be measured, the times are None and `reason` says why.
    """

    variant: str
    engine: str
    batch: int
    median_ms: float | None = None
    q1: float | None = None
    q3: float | None = None
    samples_per_second: float | None = None
    accuracy: float | None = None
    reason: str | None = None
    test_metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes(Keyed):
    """The size of a ticket's network.

    `weights` counts the maskable weights, `kept` those that the masks keep, and `effective` those of the kept that lie
    on a path from input to output. `units` counts filters and neurons, `dead_units` those that no signal passes. `macs`
    are the multiply-adds of one sample. Values that are not known are None; `effective_reason` says why the effective
    weights are not.
    """

    parameters: int
    weights: int
    kept: int
    density: float
    effective: int | None = None
    units: int | None = None
    dead_units: int | None = None
    macs: int
    dense_bytes: int
    ticket_bytes: int | None = None
    compacted_parameters: int | None = None
    compacted_macs: int | None = None
    compacted_bytes: int | None = None
    effective_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Best(Keyed):
    """The best variant at one batch size, and a sentence about it.

    `times_dense_eager` and `times_fastest_dense` say how many times as fast it is as the dense network in eager mode,
    and as the dense network in its fastest engine, `fastest_dense_engine`. All but `batch`, `gain` and `sentence` are
    None where nothing could be measured.
    """

    variant: str | None = None
    engine: str | None = None
    batch: int
    median_ms: float | None = None
    times_dense_eager: float | None = None
    times_fastest_dense: float | None = None
    fastest_dense_engine: str | None = None
    gain: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Bench(Keyed):
    """What `bench` has measured of a ticket on this machine; `load` is that of the machine before the measurement.

    `metric` is what `test_metric` of the rows is the value of, None where nothing was measured on data.
    """

    sizes: Sizes
    load: Load
    threads: int
    device: str
    data: str | None
    metric: Metric | None = None
    density: float
    rows: tuple[Row, ...]
    best: Best


def to_dict(measured: Bench) -> dict[str, Any]:
    """What `bench` returns as plain dictionaries, tuples and numbers: what `ticket bench --json` prints."""
    found = asdict(measured) | {"load": measured.load.as_dict()}
    if measured.sizes.effective_reason is None:
        del found["sizes"]["effective_reason"]
    return found
