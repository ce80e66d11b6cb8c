"""Any task: what a run reports beside a restatement in NumPy, for each kind of task; and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from products import combine
from tasks import KINDS, Kind, distance, huber, labels, mlp, numbers, regression, tagged
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from supermask.choosing.gradients import call
from ticket_search import Interrupted, RequestError, controls, resume, search, train
from ticket_search.analysis.comparison import compare
from ticket_search.analysis.tables import read_csv
from ticket_search.contract.metric import ACCURACY, METRICS, Metric, describe_metric, metric_of_function
from ticket_search.data.dataset import from_arrays
from ticket_search.runs.progress import Progress
from ticket_search.training import evaluation
from ticket_search.training.measures import Batch, make_measure
from ticket_search.training.objective import Objective
from ticket_search.training.outputs import classes_second, main_output, number_by_number
from ticket_search.training.running_mean import Tally

QUICK = {"epochs": 2, "threads": 1, "progress": False, "batch_size": 32, "density": 0.5}


def searched(kind: Kind, method: str, folder: Path, **flags):
    return search(method, kind.make, kind.data(), runs=folder, **{**QUICK, **kind.flags, **flags})


def outputs_of(run, kind: Kind):
    """The main output of the ticket's network for the whole test split, and the targets, in NumPy."""
    data = from_arrays(kind.data(), 0)
    net = run.ticket.apply_to(kind.make()).eval()
    with torch.no_grad():
        outputs = call(net, data.test_x)
    return main_output(outputs).numpy(), data.test_y.numpy()


@combine(name=KINDS, method=["imp", "edge-popup", "snip"])
def test_a_run_reports_what_numpy_finds(name, method, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 24)  # the 52 samples of the test split in batches of several sizes
    kind = KINDS[name]
    run = searched(kind, method, tmp_path, epochs=1, **({"fraction": 0.5} if method == "imp" else {}))
    outputs, targets = outputs_of(run, kind)
    summary = run.summary
    assert summary["metric"] == kind.named
    assert summary["test_metric"] == pytest.approx(kind.metric(outputs, targets), rel=2e-5)
    assert ("test_accuracy" in summary) == (kind.named["name"] == "accuracy")
    said = run.ticket.meta["accuracy"] if "test_accuracy" in summary else run.ticket.meta["metric"]["values"]
    assert said["final"] == {"test": summary["test_metric"], "validation": summary["val_metric"]}
    tags = {tag for row in run.metrics for tag in row}
    assert {f"{kind.named['name']}/{split}" for split in ("train", "validation", "test")} <= tags
    assert ("accuracy/test" in tags) == (kind.named["name"] == "accuracy")


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_of_a_split_is_that_of_all_its_samples(name, tmp_path, monkeypatch):
    kind = KINDS[name]
    monkeypatch.setattr(evaluation, "BATCH", 24)
    run = searched(kind, "dense", tmp_path, epochs=1, density=1.0)
    data = from_arrays(kind.data(), 0)
    net = run.ticket.apply_to(kind.make()).eval()
    with torch.no_grad():
        outputs = main_output(call(net, data.validation_x)).numpy()
    assert run.summary["val_loss"] == pytest.approx(kind.loss(outputs, data.validation_y.numpy()), rel=2e-5)


@pytest.mark.parametrize(
    "name",
    ["regression", pytest.param("tokens", marks=pytest.mark.slow), pytest.param("causal", marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(name, tmp_path, monkeypatch):
    kind = KINDS[name]
    flags = {"evaluate_every": "3it", "accumulate": 2}
    whole = searched(kind, "imp", tmp_path, name="whole", **flags)
    steps = iter(range(1000))

    def stop(self, step):
        if next(steps) == 13:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "advance_to", stop)
    with pytest.raises(Interrupted) as stopped:
        searched(kind, "imp", tmp_path, name="stopped", **flags)
    monkeypatch.undo()
    again = resume(stopped.value.path, kind.make, kind.data(), progress=False)
    assert (again.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    clocks = ("speed/samples-per-second",)
    rows = [[{tag: x for tag, x in row.items() if tag not in clocks} for row in run.metrics] for run in (whole, again)]
    assert rows[0] == rows[1]


def test_functions_of_ones_own_are_given_again(tmp_path, monkeypatch):
    kind = KINDS["functions"]

    def own(outputs, targets):
        return (outputs - targets).abs().mean(1)

    monkeypatch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as stop:
        searched(kind, "imp", tmp_path, metric=own, init="kaiming-normal")
    monkeypatch.undo()
    with pytest.raises(RequestError, match=r"own.*resume\(.*, metric=\.\.\.\) goes on"):
        resume(stop.value.path, kind.make, kind.data(), progress=False)
    with pytest.raises(RequestError, match="started otherwise: --metric"):
        resume(stop.value.path, kind.make, kind.data(), metric=distance, loss=huber, progress=False)
    run = resume(stop.value.path, kind.make, kind.data(), metric=own, loss=huber, progress=False)
    assert run.summary["metric"] == {"name": "own", "direction": "higher", "unit": ""}
    row = controls(run.path, ["reinit"], model=kind.make, data=kind.data(), metric=own, loss=huber, progress=False)[0]
    again = train(run.path, kind.make, kind.data(), metric=own, loss=huber, runs=tmp_path, progress=False)
    assert row["test_metric"] != run.summary["test_metric"] == again.summary["test_metric"]
    with pytest.raises(RequestError, match="the data are not those of the run"):
        other = KINDS["one number"].data()
        controls(run.path, ["shuffle"], model=kind.make, data=other, metric=own, loss=huber, progress=False)


def test_parts_of_a_batch_weigh_as_many_targets_as_count(tmp_path):
    """Accumulated over parts of unequal numbers of tokens, the gradient is that of the whole batch."""
    kind = KINDS["language"]
    x, y = kind.data()
    y = np.where(np.arange(y.shape[1]) < np.random.default_rng(0).integers(1, 9, (len(y), 1)), y, -100)
    flags = {**QUICK, "epochs": 1, "density": 1.0, "lr": 0.1, "runs": tmp_path, "metric": "perplexity"}
    whole, parts = (
        search("dense", kind.make, (x, y), accumulate=number, name=f"in-{number}", init_seed=0, **flags)
        for number in (1, 5)
    )
    for name, weight in whole.ticket.state_dict().items():
        torch.testing.assert_close(parts.ticket.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    assert parts.metrics[0]["loss/train"] == pytest.approx(whole.metrics[0]["loss/train"], rel=1e-5)


# --- metrics


@pytest.mark.parametrize("shape", [(50,), (50, 4)])
@pytest.mark.parametrize("name", ["r2", "mse", "mae"])
def test_metrics_of_numbers_are_those_of_sklearn(name, shape):
    from sklearn import metrics

    generator = np.random.default_rng(0)
    targets = (generator.normal(size=shape) + 1000).astype(np.float32)
    outputs = (targets + generator.normal(size=shape)).astype(np.float32)
    slowly = {"r2": metrics.r2_score, "mse": metrics.mean_squared_error, "mae": metrics.mean_absolute_error}[name]
    measure, found = make_measure(name), []
    for sizes in ([50], [7, 30, 13], [1] * 50):
        state, start = measure.start(torch.device("cpu")), 0
        for size in sizes:
            x, y = (torch.from_numpy(part[start : start + size]) for part in (outputs, targets))
            state, start = measure.add(state, Batch(x, y, torch.zeros(()), size)), start + size
        found.append(measure.value(state))
    assert found == pytest.approx([slowly(targets.astype(np.float64), outputs.astype(np.float64))] * 3, rel=1e-9)


def test_r2_of_a_constant_is_0_unless_it_is_met():
    measure = make_measure("r2")
    for outputs, expected in (([1.0, 1.0], 1.0), ([1.0, 2.0], 0.0)):
        batch = Batch(torch.tensor(outputs), torch.ones(2), torch.zeros(()), 2)
        assert measure.value(measure.add(measure.start(torch.device("cpu")), batch)) == expected


def test_a_tally_weights_batches_by_the_targets_that_count():
    objective = Objective(measure=make_measure("perplexity"))
    tally, generator = Tally(objective, torch.device("cpu")), torch.Generator().manual_seed(0)
    total = counted = 0.0
    for kept in (1, 7, 4):
        outputs, y = torch.randn(3, 5, 4, generator=generator), torch.full((3, 4), -100)
        y.view(-1)[:kept] = torch.arange(kept) % 5
        tally.add(objective.loss(outputs, y), outputs, y, 1.0)
        log = outputs.log_softmax(1)
        total -= sum(float(log[i // 4, i % 5, i % 4]) for i in range(kept))
        counted += kept
    assert tally.read()[1] == pytest.approx(np.exp(total / counted), rel=1e-6)


def test_what_a_function_says_of_itself():
    assert metric_of_function(distance) == Metric("distance", "lower", "mm")
    assert metric_of_function(lambda o, t: o) == Metric("lambda")
    with pytest.raises(RequestError, match="direction 'lowest', expected higher or lower"):
        describe_metric(direction="lowest")(lambda o, t: o)
    with pytest.raises(RequestError, match="is named 'loss', expected letters"):
        describe_metric(name="loss")(lambda o, t: o)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_of_two_values_the_better_has_the_higher_merit(metric):
    better, worse = (2.0, 1.0) if metric.direction == "higher" else (1.0, 2.0)
    assert metric.merit(better) > metric.merit(worse)
    assert (metric.margin is None) == (metric != ACCURACY)


@pytest.mark.parametrize(
    ("outputs", "targets", "named", "expected"),
    [
        ((4, 3), (4,), False, (4, 3)),
        ((4, 3, 7), (4, 7), False, (4, 3, 7)),
        ((4, 7, 3), (4, 7), False, (4, 3, 7)),
        ((4, 3, 3), (4, 3), True, (4, 3, 3)),
        ((4, 3, 5, 6), (4, 5, 6), True, (4, 3, 5, 6)),
        ((4, 5, 5, 5), (4, 5, 5), True, (4, 5, 5, 5)),
        ((4, 3, 3), (4, 3), False, "the classes may be in dimension 1 or 2"),
        ((4, 3), (4, 3), False, r"expected \[4, classes, 3\] or \[4, 3, classes\]"),
        ((4,), (4,), False, r"of shape \[4\] for class numbers of shape \[4\], expected \[4, classes\]"),
    ],
)
def test_where_the_classes_are(outputs, targets, named, expected):
    logits, y = torch.randn(outputs), torch.zeros(targets, dtype=torch.long)
    if isinstance(expected, str):
        with pytest.raises(RequestError, match=expected):
            classes_second(logits, y, named)
        return
    found = classes_second(logits, y, named)
    assert found.shape == expected
    last = named and outputs == (4, 3, 3)
    assert torch.equal(found, logits.transpose(1, 2) if last or outputs == (4, 7, 3) else logits)


def test_numbers_are_never_repeated_to_fit():
    assert number_by_number(torch.ones(4, 1), torch.ones(4)).shape == (4,)
    assert number_by_number(torch.ones(4), torch.ones(4, 1)).shape == (4, 1)
    for shape in ((1,), (4, 2), (1, 4)):
        with pytest.raises(RequestError, match="expected one for each"):
            number_by_number(torch.ones(shape), torch.ones(4))


# --- comparing


def test_lower_values_of_a_metric_that_is_to_be_low_are_better(tmp_path):
    """Two searches of which one is planted to be better: the difference is positive, and so is that to a control."""
    kind = KINDS["one number"]
    bad, good = (
        [searched(kind, method, tmp_path, seed=seed, epochs=1, density=density, batch_size=60) for seed in range(5)]
        for method, density in (("dense", 1.0), ("snip", 0.5))
    )
    for run in good:
        plant(run, "mae", lambda value: value / 10)
    found = compare([run.path for run in (*good, *bad)], delta=0.05)
    group = next(group for group in found.groups if group.method == "snip")
    gaps = [
        dense.summary["test_metric"] - ticket.summary["test_metric"] for ticket, dense in zip(good, bad, strict=True)
    ]
    assert group.levels[0].difference.mean == pytest.approx(np.mean(gaps)) and min(gaps) > 0
    assert group.mean == pytest.approx(np.mean([run.summary["test_metric"] for run in good]))
    assert group.verdict.matching.answer == "yes" and " mae over 5 seeds" in group.verdict.matching.because
    without = next(g for g in compare([run.path for run in (*good, *bad)]).groups if g.method == "snip")
    assert without.verdict.matching.answer == "unknown" and "no margin was given" in without.verdict.matching.because


def plant(run, name: str, change) -> None:
    """Rewrite a run as if its ticket had been measured otherwise."""
    import supermask

    ticket, path = run.ticket, run.path / "summary.json"
    (run.path / "checksums.json").unlink(missing_ok=True)
    summary = json.loads(path.read_text())
    summary["test_metric"] = change(summary["test_metric"])
    values = ticket.meta["metric"]["values"]
    meta = {
        **ticket.meta,
        "metric": {**ticket.meta["metric"], "values": {**values, "final": {"test": summary["test_metric"]}}},
    }
    supermask.save(supermask.Ticket(ticket.masks, ticket.states, meta), run.path / "ticket.safetensors", overwrite=True)
    path.write_text(json.dumps(summary))


def test_runs_of_two_metrics_are_in_no_difference(tmp_path, ticket):
    kind = KINDS["regression"]
    paths = [searched(kind, "dense", tmp_path, name="r2", density=1.0).path]
    paths.append(searched(kind, "snip", tmp_path, name="mse", metric="mse").path)
    found = compare(paths)
    assert all(row.difference is None for group in found.groups for row in group.rows)
    assert any("measured by several metrics (r2; mse, lower is better)" in note for note in found.notes)
    assert any("it is measured by r2, not by mse, lower is better" in note for note in found.notes)
    with pytest.raises(RequestError, match="a margin of 0.1 for several metrics"):
        compare(paths, delta=0.1)
    answer = ticket("compare", *map(str, paths), "--html", str(tmp_path / "page.html"))
    assert answer.code == 2 and "a figure shows one metric" in answer.err and not (tmp_path / "page.html").exists()
    words = ticket("compare", *map(str, paths))
    assert words.code == 0 and "test r2" in words.out and "test mse" in words.out and "test %" not in words.out


def test_everything_that_is_shown_names_the_metric(tmp_path, ticket):
    kind = KINDS["one number"]
    run = searched(kind, "imp", tmp_path / "runs", density=0.4, init="kaiming-normal")
    rows = controls(run.path, ["reinit"], model=kind.make, data=kind.data(), progress=False)
    assert rows[0]["test_metric"] > 0 and "test_accuracy" not in rows[0]
    files = {flag: tmp_path / f"c.{flag}" for flag in ("csv", "html", "latex", "markdown")}
    words = [word for flag, path in files.items() for word in (f"--{flag}", str(path))]
    board = ["--tensorboard", str(tmp_path / "board"), "--plot", str(tmp_path / "c.svg"), "--delta", "0.2"]
    shown = ticket("compare", str(run.path), *words, *board)
    assert shown.code == 0, shown.err
    texts = [shown.out, *(path.read_text() for path in files.values())]
    assert all("mae" in text and "accuracy (" not in text and "test %" not in text for text in texts)
    assert "lower is better" in shown.out
    again = compare([], others=read_csv(files["csv"]))
    group = compare([run.path]).groups[0]
    assert again.groups[0].metric == group.metric == Metric("mae", "lower")
    assert again.groups[0].levels[-1].difference.mean == pytest.approx(group.levels[-1].difference.mean)
    for command in (["runs", "list", "--runs", str(tmp_path / "runs")], ["inspect", str(run.path)]):
        assert "mae" in ticket(*command).out
    assert "level/mae-test" in events(run.path) and "accuracy" not in events(run.path)
    assert "by-weights-kept/test-mae" in "".join(
        events(path) for path in (tmp_path / "board").rglob("*") if path.is_dir()
    )


def events(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in folder.glob("events.out.tfevents.*"))


# --- data


def test_all_forms_of_the_same_data_are_the_same_samples():
    x, y = numbers(60), numbers(60)[:, :3].argmax(1)

    class Table:
        """What a data set of Hugging Face's `datasets` is to its reader."""

        column_names = ["x", "label"]

        def with_format(self, name):
            assert name == "numpy"
            return Whole()

    class Whole:
        def __getitem__(self, rows):
            assert rows == slice(None)
            return {"x": x, "label": y}

    pairs = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    plain = from_arrays((x, y), 3)
    for form in ([x, y], (torch.from_numpy(x), y.tolist()), pairs, DataLoader(pairs, batch_size=7)):
        assert from_arrays(form, 3).name == plain.name
    named = [from_arrays(form, 3) for form in ({"x": x, "y": y}, {"x": x, "label": y}, Table())]
    samples = [{"x": x[i], "labels": int(y[i])} for i in range(60)]
    listed = type(
        "Listed", (torch.utils.data.Dataset,), {"__len__": lambda _: 60, "__getitem__": lambda _, i: samples[i]}
    )
    named += [from_arrays(form, 3) for form in (listed(), DataLoader(listed(), batch_size=11))]
    for form in named:
        assert torch.equal(form.train_x["x"], plain.train_x) and torch.equal(form.test_y, plain.test_y)
    parts = {"train": (x[:40], y[:40]), "validation": (x[40:50], y[40:50]), "test": (x[50:], y[50:])}
    given = from_arrays(parts, 3)
    assert torch.equal(given.validation_x, torch.from_numpy(x[40:50])) and given.train_size == 40
    both = TensorDataset(torch.from_numpy(x[:, :2]), torch.from_numpy(x[:, 2:]), torch.from_numpy(y))
    pairs = torch.utils.data.Subset(Paired(both), range(60))
    for form in (pairs, DataLoader(pairs, batch_size=7), ((x[:, :2], x[:, 2:]), y)):
        two = from_arrays(form, 3).train_x
        assert isinstance(two, tuple) and torch.equal(torch.cat(two, 1), plain.train_x)
    for batches in (named[0].train_batches(torch.arange(20), 8), named[0].batches("test", 5)):
        assert all(len(batch["x"]) == len(targets) for batch, targets in batches)


class Paired(torch.utils.data.Dataset):
    """Samples whose inputs are all but the last of another data set's."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int):
        *x, y = self.inner[i]
        return tuple(x), y


def test_tokens_and_labels_are_taken_as_they_are():
    data = from_arrays(tagged(), 0)
    assert data.train_x["input_ids"].dtype == data.train_y.dtype == torch.int64
    assert data.classes == 3 and data.input_shape == {"input_ids": (7,), "attention_mask": (7,)}
    assert from_arrays(labels(), 0).train_y.dtype == torch.float32 and from_arrays(labels(), 0).classes == 3
    assert from_arrays(regression(), 0).classes == 3 and from_arrays((numbers(), numbers()[:, 0]), 0).classes == 1
    assert from_arrays((np.arange(40).reshape(20, 2), np.arange(20) % 2), 0).train_x.dtype == torch.int64


class Odd(nn.Linear):
    """A network whose output is whatever a test makes of it."""

    def __init__(self, change) -> None:
        super().__init__(6, 3)
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


X, Y = numbers(60), numbers(60)[:, :3].argmax(1)
FLOATS = (X, X[:, :3])


def nothing(outputs, targets):
    return outputs.sum(1) * float("nan")


def broken(outputs, targets):
    raise KeyError("no such thing")


BAD = {
    "floats": (Odd, FLOATS, {}, "the targets are floats: name the loss, --loss mse"),
    "numbers": (lambda o: o[:, :2], FLOATS, {"loss": "mse"}, r"shape \[2, 2\] for targets of shape \[2, 3\], expected one"),
    "broadcast": (lambda o: o[:, :1], (X, X[:, :2]), {"loss": "mse"}, r"shape \[2, 1\] for targets of shape \[2, 2\]"),
    "classes": (lambda o: o[:, :2], (X, Y), {}, "gives 2 numbers per sample, .* has 3 classes"),
    "loss of floats": (None, FLOATS, {"loss": "cross-entropy"}, "needs class numbers"),
    "metric": (None, (X, Y), {"metric": "mse"}, "with the loss cross-entropy expected accuracy, perplexity"),
    "metric and loss": (None, FLOATS, {"loss": "mse", "metric": "accuracy"}, "with the loss mse expected r2, mse, mae"),
    "NaN": (None, (X, Y), {"metric": nothing}, "the metric nothing is nan for the first batch"),
    "one value": (None, (X, Y), {"metric": lambda o, t: o.mean()}, r"gives shape \[\] for 2 samples, expected \[2\]"),
    "raises": (None, (X, Y), {"metric": broken}, "the metric broken does not take .*no such thing"),
    "several losses": (None, (X, Y), {"loss": lambda o, t: o}, r"the loss of a batch is shape \[2, 3\], expected one number"),
    "no gradient": (lambda o: o.detach(), (X, Y), {}, "depends on no parameter"),
    "NaN loss": (lambda o: o * float("nan"), (X, Y), {}, "the loss of the first batch is nan in evaluation mode"),
    "names": (lambda o: {"logitz": o}, (X, Y), {}, "gives dict with logitz, expected a tensor"),
    "loss only": (lambda o: {"loss": o.mean()}, (X, Y), {}, "the metric accuracy is of outputs"),
    "no loss": (None, (X, Y), {"loss": "model"}, "outputs have no loss of their own"),
    "text": (None, (np.array([["a"]] * 20), np.arange(20) % 2), {}, "x is <U1, expected numbers"),
    "ragged list": (None, ([[1.0], [1.0, 2.0]] * 10, np.arange(20) % 2), {}, "x holds rows of several lengths"),
    "ragged": (None, {"a": np.array([[1], [1, 2]] * 10, object), "y": np.arange(20) % 2}, {}, "rows of several lengths"),
    "no labels": (None, {"input": X, "lables": Y}, {}, "none of them is called as targets are; did you mean 'labels'"),
    "two labels": (None, {"x": X, "y": Y, "label": Y}, {}, "the targets are in several, label, y"),
    "one sample": (None, (X[:1], Y[:1]), {}, "data: 1 sample, expected at least 10"),
    "one class": (None, (X, Y * 0), {}, "y has the class 0 only"),
    "one value of all": (None, (X, X[:, 0] * 0), {"loss": "mse"}, "y is 0.0 in every sample"),
    "no validation": (
        None, {"train": (X, Y), "validation": (X[:0], Y[:0]), "test": (X, Y)}, {}, "validation: 0 samples, expected"
    ),
    "nothing counts": (None, (X, np.full((60, 3), -100)), {}, "-100 everywhere"),
    "negative": (None, (X, np.full((60, 3), -3)), {}, "class number -3, expected numbers from 0 .-100 where"),
    "lengths": (None, {"a": X, "b": X[:9], "y": Y}, {}, "of one n"),
    "unlike": (None, {"train": (X, Y), "test": (X, X[:, 0])}, {}, "train targets are int64, test targets float32"),
    "missing": (None, (X, Y), {"loss": "cross-entropi"}, "did you mean 'cross-entropy'"),
    "smoothing": (None, FLOATS, {"loss": "mse", "label_smoothing": 0.1}, "--label-smoothing goes with cross-entropy"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_said_in_a_line_before_a_folder_is_made(case, tmp_path):
    change, data, flags, expected = BAD[case]
    make = (lambda: Odd(change)) if callable(change) and change is not Odd else (lambda: nn.Linear(6, 3))
    with pytest.raises(RequestError, match=expected) as refusal:
        search("imp", make, data, runs=tmp_path / "runs", **{**QUICK, **flags})
    assert all("\n" not in problem for problem in refusal.value.problems)
    assert not (tmp_path / "runs").exists()


def test_a_networks_own_loss_gives_way_to_one_that_is_named(tmp_path):
    own = searched(KINDS["tokens"], "dense", tmp_path, density=1.0, epochs=1, name="own")
    named = searched(KINDS["tokens"], "dense", tmp_path, density=1.0, epochs=1, name="named", loss="cross-entropy")
    asked = searched(KINDS["tokens"], "dense", tmp_path, density=1.0, epochs=1, name="asked", loss="model")
    assert own.summary["val_loss"] == asked.summary["val_loss"]
    assert own.summary["val_loss"] == pytest.approx(named.summary["val_loss"], rel=1e-3)
    with pytest.raises(RequestError, match="the loss is the model's own"):
        searched(KINDS["tokens"], "dense", tmp_path, density=1.0, label_smoothing=0.1)


def test_auxiliary_outputs_count_in_a_loss_of_ones_own_only(tmp_path):
    kind, seen = KINDS["two"], []

    def both(outputs, targets):
        main, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        seen.append(len(others))
        return sum(nn.functional.cross_entropy(part, targets) for part in (main, *others))

    plain = searched(kind, "dense", tmp_path, density=1.0, name="plain")
    helped = searched(kind, "dense", tmp_path, density=1.0, name="helped", loss=both)
    start, end = ({name: run.ticket.state_dict(state)["side.weight"] for name, run in (("plain", plain), ("helped", helped))}
                  for state in ("start", "final"))  # fmt: skip
    assert torch.equal(start["plain"], end["plain"]) and not torch.equal(start["helped"], end["helped"])
    assert set(seen) == {0, 1}, "in evaluation there is one output"


def test_data_that_have_changed_are_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("changing_data.py").write_text(
        "import numpy as np\nseed = 0\ndef load():\n    x = np.random.default_rng(seed).normal(size=(60, 6))\n"
        "    return x.astype('f'), x[:, :3].argmax(1)\n"
    )
    monkeypatch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as stop:
        search("snip", lambda: mlp(3), "changing_data:load", runs=tmp_path / "runs", **QUICK)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    import changing_data

    monkeypatch.setattr(changing_data, "seed", 1)
    with pytest.raises(Exception, match="gives other samples than when the run was started"):
        resume(stop.value.path, lambda: mlp(3), progress=False)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    run = search("snip", lambda: mlp(3), "changing_data:load", runs=tmp_path / "again", init="kaiming-normal", **QUICK)
    monkeypatch.setattr(changing_data, "seed", 1)
    with pytest.raises(RequestError, match="gives other samples than when the run was started"):
        controls(run.path, ["reinit"], model=lambda: mlp(3), progress=False)
    monkeypatch.delattr(changing_data, "load")
    with pytest.raises(RequestError, match="changing_data has no 'load'"):
        controls(run.path, ["reinit"], model=lambda: mlp(3), progress=False)


def test_outputs_by_name(tmp_path):
    """A dictionary with logits is searched as the tensor in it is."""
    one = search("imp", lambda: nn.Linear(6, 3), (X, Y), runs=tmp_path, name="tensor", **QUICK)
    other = search("imp", lambda: Odd(lambda o: {"logits": o}), (X, Y), runs=tmp_path, name="named", **QUICK)
    assert one.summary["test_accuracy"] == other.summary["test_accuracy"]
    assert one.metrics[0]["loss/train"] == other.metrics[0]["loss/train"]
