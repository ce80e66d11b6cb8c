"""What a ticket gains where it runs: the table of its variants, and the verdict from the table."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import supermask
import ticket_search.deploy.bench as benching
from supermask import Ticket, make_state
from supermask.sparse.timing import time_in_turns
from supermask.weights.architectures import find_architecture
from ticket_search import RequestError
from ticket_search.contract.metric import METRICS
from ticket_search.deploy.bench import ENGINES, VARIANTS, bench
from ticket_search.deploy.bench_result import Row, Sizes, to_dict
from ticket_search.deploy.bench_verdict import judge

PARTS = {
    "sizes": "parameters weights kept density effective units dead_units macs dense_bytes ticket_bytes "
    "compacted_parameters compacted_macs compacted_bytes",
    "load": "average cores stretch waited others busy",
    "best": "variant engine batch median_ms times_dense_eager times_fastest_dense fastest_dense_engine gain sentence",
}
KEYS = {
    "variant",
    "engine",
    "batch",
    "median_ms",
    "q1",
    "q3",
    "samples_per_second",
    "accuracy",
    "reason",
    "test_metric",
}


def a_ticket(density: float, data: str = "digits") -> Ticket:
    torch.manual_seed(0)
    model = find_architecture("lenet-300-100")((1, 8, 8), 10)
    masks = supermask.prune(model, density, allocation="layerwise")
    meta = {
        "data": data,
        "architecture": {"name": "lenet-300-100", "arguments": {"input_shape": [1, 8, 8], "classes": 10}},
    }
    return Ticket(masks, {"final": make_state(model.state_dict(), masks)}, meta)


@pytest.mark.parametrize("engines", [("eager",), pytest.param(ENGINES, marks=pytest.mark.slow)], ids=len)
def test_the_command_measures_every_variant_in_every_engine(engines, ticket, tmp_path, monkeypatch):
    compiled = []

    def counted(*arguments, **named):
        stats = torch._dynamo.utils.counters["stats"]
        before = stats["unique_graphs"]
        times = time_in_turns(*arguments, **named)
        compiled.append(stats["unique_graphs"] - before)
        return times

    monkeypatch.setattr(benching, "time_in_turns", counted)
    made = a_ticket(0.2)
    supermask.save(made, tmp_path / "t.safetensors")
    words = ("--json", "--batch-sizes", "3", "--seconds", "0.02", "--plot", "f.png", "--engines", ",".join(engines))
    answer = ticket("bench", "t.safetensors", *words)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert compiled == [0]  # all compiling is done before the clock starts
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    rows = found["rows"]
    assert [(row["variant"], row["engine"]) for row in rows] == [(v, e) for v in VARIANTS for e in engines]
    for row in rows:
        assert set(row) == KEYS and row["batch"] == 3
        if row["variant"] == "sparse" and row["reason"]:
            continue  # an engine that has no compressed rows
        assert row["reason"] is None
        assert 0 < row["q1"] <= row["median_ms"] <= row["q3"]
        assert row["samples_per_second"] == pytest.approx(3000 / row["median_ms"])
    accuracies = {row["accuracy"] for row in rows if row["variant"] != "dense" and row["reason"] is None}
    assert accuracies == {ticket_accuracy(ticket)}
    assert {row["accuracy"] for row in rows if row["variant"] == "dense"} == {None}
    sizes = found["sizes"]
    assert sizes["kept"] == made.masks.kept and sizes["parameters"] == 50_610
    assert sizes["macs"] == 64 * 300 + 300 * 100 + 100 * 10
    assert sizes["dense_bytes"] == 4 * 50_610
    assert sizes["ticket_bytes"] == (tmp_path / "t.safetensors").stat().st_size
    assert 0 < sizes["effective"] <= sizes["kept"]
    assert {name: " ".join(part) for name, part in zip(PARTS, map(found.get, PARTS), strict=True)} == PARTS
    assert list(found) == ["ticket", "sizes", "load", "threads", "device", "data", "metric", "density", "rows", "best"]
    assert found["best"]["sentence"]
    again = ticket("bench", "t.safetensors", "--plot", "f.png")
    assert again.code == 2 and "f.png exists; nothing is overwritten" in again.err


def ticket_accuracy(ticket) -> float:
    return json.loads(ticket("evaluate", "t.safetensors", "--json").out)["test_accuracy"]


@pytest.mark.parametrize(
    ("slower", "says"),
    [
        ("", "no gain on this machine at batch size 2, because compaction could remove nothing"),
        (
            "dense masked",
            "best on this machine at batch size 2: compacted in eager, 1 ms, 2.00 times as fast as dense in eager",
        ),
    ],
)
def test_the_last_line_follows_from_the_times(slower, says, ticket, tmp_path, monkeypatch):
    def times(calls, seconds, device, one_more):
        return {cell: [2e-3 if cell[0] in slower.split() else 1e-3] * 5 for cell in calls}

    monkeypatch.setattr(benching, "time_in_turns", times)
    supermask.save(a_ticket(1.0), tmp_path / "t.safetensors")
    answer = ticket("bench", "t.safetensors", "--batch-sizes", "2", "--engines", "eager", "--seconds", "0.02")
    assert answer.code == 0, answer.err
    assert answer.out.strip().splitlines()[-1].startswith(says)


def test_the_sparse_network_is_the_compacted_one_chosen_at_each_batch_size(monkeypatch):
    seen = []

    def chosen(network, example_input, seconds):
        assert seconds == 0.01, "no longer than the variants are measured"
        seen.append((len(example_input), sum(p.numel() for p in network.parameters())))
        return network

    monkeypatch.setattr(benching, "accelerate", chosen)
    found = bench(a_ticket(0.01), batch_sizes=[3, 1], engines=["eager"], seconds=0.01, progress=False)
    small = found.sizes.compacted_parameters
    assert small < found.sizes.parameters
    assert seen == [(3, small), (1, small)]


def test_a_variant_with_other_outputs_is_a_row_with_its_reason(monkeypatch):
    class Other(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]

    def none(*arguments):
        raise ValueError("no layer")

    monkeypatch.setattr(benching, "compact", lambda *arguments: Other())
    monkeypatch.setattr(benching, "_accelerate", none)
    threads = torch.get_num_threads()
    found = bench(a_ticket(0.5), batch_sizes=[2], engines=["eager"], seconds=0.01, threads=1, progress=False)
    assert torch.get_num_threads() == threads and found.threads == 1
    reasons = {row.variant: row.reason for row in found.rows}
    assert reasons["dense"] is reasons["masked"] is None
    assert reasons["compacted"].startswith("its outputs differ from the masked network's by ")
    assert reasons["sparse"] == "ValueError: no layer"
    assert "sparse: ValueError: no layer" in found.best.sentence
    assert found["best"]["sentence"] == to_dict(found)["best"]["sentence"] == found.best.sentence
    assert found["load"]["busy"] == to_dict(found)["load"]["busy"] == found.load.busy


def test_wrong_requests_are_said_at_once():
    with pytest.raises(RequestError) as caught:
        bench(a_ticket(0.5), batch_sizes=[0], engines=["eger"], threads=0, device="tpu", state="end", seconds=0)
    assert len(caught.value.problems) == 6
    assert "did you mean 'eager'" in str(caught.value)
    with pytest.raises(RequestError, match="unknown data set 'digit'"):
        bench(a_ticket(0.5), data="digit", progress=False)


def test_all_take_turns_in_short_rows_and_each_is_timed_alone():
    order, ticks = [], []

    def call(name, pause):
        def run():
            order.append(name)
            time.sleep(pause)

        return run

    calls = {"quick": call("quick", 0.0), "slow": call("slow", 0.012)}
    times = time_in_turns(calls, 0.05, torch.device("cpu"), one_more=lambda: ticks.append(1))
    rows = [(name, len(list(group))) for name, group in itertools.groupby(order)]
    quick = order.count("quick") - len(times["quick"])  # the first of each turn is not counted
    assert len(times["slow"]) == order.count("slow") == quick >= 5
    assert len(times["quick"]) > len(times["slow"])
    assert len(rows) < 2 * quick or len({rows[0], rows[-1]}) == 2
    assert sorted(times["slow"])[0] >= 0.012 > sorted(times["quick"])[len(times["quick"]) // 2]
    assert len(ticks) == 100
    assert all(len(each) < 150 + 20 for each in time_in_turns(calls, 60.0, torch.device("cpu"), most=150).values())
    assert time_in_turns({}, 1.0, torch.device("cpu")) == {}


SIZES = Sizes(
    parameters=1000, weights=900, kept=90, density=0.1, macs=900, dense_bytes=4000, units=50, dead_units=20,
    compacted_parameters=400,
)  # fmt: skip


def row(variant, engine, ms, accuracy=90.0, spread=0.1, batch=64, reason=None):
    if ms is None:
        return Row(variant, engine, batch, reason=reason)
    accuracy = None if variant == "dense" else accuracy
    times = ms, ms * (1 - spread), ms * (1 + spread), 1000 * batch / ms
    return Row(variant, engine, batch, *times, accuracy, test_metric=accuracy)


DENSE = [row("dense", "eager", 10.0), row("dense", "onnxruntime", 6.0), row("masked", "eager", 10.0)]


def test_the_fastest_of_the_same_accuracy_is_the_best():
    rows = [*DENSE, row("compacted", "onnxruntime", 2.0), row("sparse", "eager", 1.0, accuracy=89.0)]
    best = judge([*rows, row("compacted", "eager", 0.1, batch=1)], SIZES)
    assert (best.variant, best.engine, best.gain) == ("compacted", "onnxruntime", True)
    assert (best.times_dense_eager, best.times_fastest_dense) == (5.0, 3.0)
    assert best.sentence == (
        "best on this machine at batch size 64: compacted in onnxruntime, 2 ms, 5.00 times as fast as dense in eager, "
        "3.00 times as fast as dense in its fastest engine (onnxruntime)"
    )
    assert "busy (load 9): measure again" in judge(rows, SIZES, busy="load 9").sentence


@pytest.mark.parametrize(
    ("more", "sizes", "because"),
    [
        (
            [row("compacted", "eager", 9.9), row("sparse", "eager", 20.0)],
            replace(SIZES, compacted_parameters=1000, dead_units=0),
            "compaction could remove nothing: all 50 units are alive; "
            "the sparse network at density 0.1 takes at best 2.00 times as long as the dense one (in eager)",
        ),
        (
            [row("compacted", "onnxruntime", 5.8), row("sparse", "eager", None, reason="ValueError: no layer")],
            SIZES,
            "the compacted network with 40% of the parameters takes at best 0.97 times as long as the dense one (in "
            "onnxruntime); "
            "sparse: ValueError: no layer",
        ),
        # Faster than dense in eager, but not than what an engine makes of the dense network.
        ([row("compacted", "eager", 7.0)], SIZES, "takes at best 0.70 times as long as the dense one (in eager)"),
        # Faster than dense, but not than the same shapes with zeros in them.
        (
            [row("masked", "onnxruntime", 3.0), row("compacted", "eager", 2.8)],
            SIZES,
            "takes at best 0.28 times as long",
        ),
        # The masked network is dense to every engine: that it came out faster is noise.
        ([row("masked", "onnxruntime", 3.0)], SIZES, "the sparse network was not measured"),
    ],
)
def test_no_gain_has_its_reason(more, sizes, because):
    best = judge([*DENSE, *more], sizes)
    assert not best.gain
    assert best.sentence.startswith("no gain on this machine at batch size 64, because ")
    assert because in best.sentence
    assert best.sentence.endswith("onnxruntime alone runs the dense network 1.67 times as fast as eager")


@pytest.mark.parametrize(("ms", "spread", "gain"), [(5.0, 0.15, True), (5.0, 0.25, False), (5.5, 0.05, False)])
def test_a_gain_has_half_its_times_below_a_quarter_and_three_quarters_below_half_of_theirs(ms, spread, gain):
    assert judge([*DENSE, row("sparse", "eager", ms, spread=spread)], SIZES).gain is gain


def test_no_times_no_verdict():
    none = judge([row("dense", "eager", None, reason="x")], SIZES)
    assert none.sentence.startswith("no verdict at batch size 64")
    assert (none.gain, none.variant, none.times_dense_eager) == (False, None, None)


def test_a_better_accuracy_is_no_reason_against_a_gain():
    assert judge([*DENSE, row("compacted", "eager", 3.0, accuracy=90.01)], SIZES).gain
    assert not judge([*DENSE, row("compacted", "eager", 3.0, accuracy=89.99)], SIZES).gain


@pytest.mark.parametrize(
    ("metric", "better"), [(METRICS["r2"], 0.91), (METRICS["perplexity"], 4.0), (METRICS["mse"], 0.1)]
)
def test_a_variant_that_is_worse_by_the_metric_is_not_the_best(metric, better):
    worse = better - 0.01 if metric.direction == "higher" else better + 0.01
    masked = [row("dense", "eager", 10.0), row("masked", "eager", 10.0, accuracy=better)]
    for value, gain in ((better, True), (better * (1 + 1e-6), True), (better * (1 - 1e-6), True), (worse, False)):
        assert judge([*masked, row("compacted", "eager", 3.0, accuracy=value)], SIZES, metric=metric).gain is gain


class Named(nn.Module):
    """Tokens and a mask by name; what it gives has names too."""

    def __init__(self):
        super().__init__()
        self.tokens, self.inner, self.head = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids, mask):
        hidden = self.inner(self.tokens(ids)).relu() * mask.unsqueeze(-1)
        return {"logits": self.head(hidden.mean(1)), "hidden": hidden}


@pytest.mark.slow
def test_a_network_of_tokens_and_a_mask_is_measured_on_samples_as_the_ticket_tells():
    model = Named()
    masks = supermask.prune(model, 0.3)
    ids, mask = ({"dtype": "int64", "shape": [6], "range": [0, most]} for most in (19, 1))
    made = Ticket(masks, {"final": make_state(model.state_dict(), masks)}, {"sample": {"ids": ids, "mask": mask}})
    found = bench(made, model=Named, batch_sizes=[3, 30], engines=["eager"], seconds=0.01, progress=False)
    assert [row.variant for row in found.rows if row.median_ms is None and row.variant != "sparse"] == []
    assert found.sizes.macs == 6 * 8 * 16 + 16 * 3 and found.metric is None
    del made.meta["sample"]["mask"]
    with pytest.raises(RequestError, match=r"does not take samples of shape {'ids': \[6\]}: .*'mask'.*--data"):
        bench(made, model=Named, progress=False)


def test_another_metric_than_accuracy_is_named(ticket, tmp_path):
    """Of the network of a regression: the value is that of the run, and no accuracy is told."""
    (tmp_path / "my_task.py").write_text(
        "import torch\nfrom torch import nn\ndef build(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))\n"
        "def load():\n    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))\n    return x, x.sum(1)\n"
    )
    words = "--model my_task:build --data my_task:load --loss mse --metric mae --density 0.5 --epochs 1 --threads 1"
    assert ticket("search", "--method", "snip", "--name", "run", *words.split()).code == 0
    flags = ("--engines", "eager", "--seconds", "0.01", "--batch-sizes", "2", "--threads", "1")
    found = json.loads(ticket("bench", "run", *flags, "--json").out)
    assert found["metric"] == {"name": "mae", "direction": "lower", "unit": ""}
    value = json.loads((tmp_path / "runs/run/summary.json").read_text())["test_metric"]
    rows = {row["variant"]: row for row in found["rows"]}
    assert rows["masked"]["test_metric"] == pytest.approx(value, rel=1e-5)
    assert {row["accuracy"] for row in rows.values()} == {None}
    shown = ticket("bench", "run", *flags).out
    assert "test mae" in shown and "%" not in shown.partition("quartiles")[2].partition("\n")[0]
