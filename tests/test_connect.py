"""Stability to the noise of SGD: children of one network, the line between two of them, and what is said of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import supermask
import ticket_search
from supermask.weights.fitting import state_of
from ticket_search.contract.errors import Interrupted, RequestError
from ticket_search.contract.metric import ACCURACY, METRICS
from ticket_search.data.dataset import from_arrays
from ticket_search.questions import barriers, connectivity
from ticket_search.questions.barrier_plot import draw_barriers
from ticket_search.questions.path import POINTS, estimate_statistics, find_barrier, find_norms, measure_path
from ticket_search.running import beginning
from ticket_search.running.read_config import read_config
from ticket_search.runs.run import Run
from ticket_search.training import loop
from ticket_search.training.objective import CLASSIFICATION

# Drawn with a gain that is not the default one, which what is begun anew must not forget.
TINY = {
    "model_args": ("width=0.03",), "epochs": 2, "train_size": 320, "threads": 1, "progress": False, "init_gain": "tanh",
}  # fmt: skip
STEPS = 10  # of a training: 320 samples in batches of 60, twice


class Small(nn.Module):
    """A hidden layer with a batch norm and dropout, which would show where they are not switched as they must be."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.out, self.two = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x):
        return self.two(torch.relu(self.norm(self.one(self.out(x.flatten(1))))))


def small_data(seed: int = 0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(400, 6)).astype(np.float32)
    return from_arrays((x, (x @ draw.normal(size=(6, 3))).argmax(1)), 0)


def trained(seed: int, data) -> nn.Module:
    torch.manual_seed(seed)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_x), data.train_y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def _own_random():
    with torch.random.fork_rng():
        yield


def slow_path(
    one: nn.Module, other: nn.Module, data, batch_size: int, estimate: bool
) -> tuple[list[float], list[float]]:
    """The same sample by sample in NumPy and float64, with statistics by their definition."""

    def numbers(model):
        return {name: tensor.numpy().astype(np.float64) for name, tensor in model.state_dict().items()}

    ends, errors, losses = (numbers(one), numbers(other)), [], []
    x, y = data.train_x.numpy(), data.test_y.numpy()
    for place in range(POINTS):
        share = place / (POINTS - 1)
        w = {name: (1 - share) * ends[0][name] + share * ends[1][name] for name in ends[0]}
        mean, var = w["norm.running_mean"], w["norm.running_var"]
        if estimate:
            hidden = [
                x[first : first + batch_size] @ w["one.weight"].T + w["one.bias"]
                for first in range(0, len(x) - batch_size + 1, batch_size)
            ]
            mean = np.mean([h.mean(0) for h in hidden], axis=0)
            var = np.mean([h.var(0, ddof=1) for h in hidden], axis=0)
        wrong, loss = 0, 0.0
        for sample, label in zip(data.test_x.numpy(), y, strict=True):
            h = (w["one.weight"] @ sample + w["one.bias"] - mean) / np.sqrt(var + 1e-5)
            logits = w["two.weight"] @ np.maximum(w["norm.weight"] * h + w["norm.bias"], 0) + w["two.bias"]
            wrong += logits.argmax() != label
            loss += np.log(np.exp(logits).sum()) - logits[label]
        errors.append(100 * wrong / len(y))
        losses.append(loss / len(y))
    return errors, losses


@pytest.mark.usefixtures("_own_random")
@pytest.mark.parametrize("estimate", [True, False])
def test_the_line_is_that_of_a_slow_restatement(estimate):
    data = small_data()
    one, other = trained(1, data), trained(2, data)
    errors, losses = slow_path(one, other, data, 50, estimate)
    ends = one.state_dict(), other.state_dict()
    model = Small()
    found = measure_path(model, ends, data, CLASSIFICATION, 50, estimate=estimate)
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert found.errors == pytest.approx(errors, abs=100 / len(data.test_y) + 1e-9)
    assert np.mean(np.abs(np.subtract(found.errors, errors))) < 0.2
    assert find_barrier(found.losses) == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2, rel=1e-3)
    assert find_barrier(found.losses) > 0.01, "the two are not on one slope"
    # What is not measured on: neither network, nor the momentum of its norm.
    assert all(torch.equal(tensor, ends[0][name]) for name, tensor in one.state_dict().items())
    assert model.norm.momentum == 0.1


@pytest.mark.usefixtures("_own_random")
def test_statistics_are_those_of_one_pass_without_augmentation_and_without_dropout():
    data = small_data()
    model = trained(1, data)
    norms = list(find_norms(model).values())
    assert norms == [model.norm]
    estimate_statistics(model, norms, data, CLASSIFICATION, 100)
    hidden = model.one(data.train_x)[: len(data.train_x) // 100 * 100].split(100)
    torch.testing.assert_close(model.norm.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(model.norm.running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert not model.norm.training
    assert (model.norm.momentum, model.training) == (0.1, False)
    images = from_arrays((np.random.default_rng(0).random((60, 3, 8, 8), np.float32), np.arange(60) % 3), 0)
    from dataclasses import replace

    from ticket_search.data.augmentation import Augmentation

    moved = replace(images, augmentation=Augmentation(crop=2, flip=True))
    order = np.arange(moved.train_size)
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)) for _ in range(2)]
    ends = state_of(nets[0]), state_of(nets[1])
    assert measure_path(nets[0], ends, moved, CLASSIFICATION, 10) == measure_path(
        nets[0], ends, images, CLASSIFICATION, 10
    )
    plain = next(moved.without_augmentation().train_batches(order, 10))[0]
    assert torch.equal(plain, images.train_x[:10])
    assert not torch.equal(next(moved.train_batches(order, 10))[0], plain)


@pytest.mark.usefixtures("_own_random")
def test_one_network_twice_has_no_barrier_and_its_units_in_another_order_have_a_high_one():
    data = small_data()
    model = trained(1, data)
    state = model.state_dict()
    same = measure_path(Small(), (state, state), data, CLASSIFICATION, 50)
    assert len(same.errors) == POINTS
    assert (find_barrier(same.errors), find_barrier(same.losses)) == (0.0, pytest.approx(0.0, abs=1e-9))
    order = torch.arange(8).roll(2)
    turned = {
        name: tensor[:, order] if name == "two.weight" else tensor[order] if tensor.shape[:1] == (8,) else tensor
        for name, tensor in state.items()
    }
    far = measure_path(Small(), (state, turned), data, CLASSIFICATION, 50)
    assert far.errors[0] == far.errors[-1], "the same function"
    assert find_barrier(far.errors) > 10


@pytest.fixture(autouse=True, scope="module")
def _undrawn() -> Iterator[None]:
    """Drawing takes longer than the trainings here; one test draws by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connectivity, "draw_barriers", lambda *arguments: b"a picture")
        yield


@pytest.fixture(scope="module")
def imp(tmp_path_factory) -> Run:
    """A finished search of two levels."""
    folder = tmp_path_factory.mktemp("connect")
    return ticket_search.search("imp", levels="0.5,0.2", runs=folder, name="imp", evaluate_every="5it", **TINY)


@pytest.fixture(scope="module")
def answered(imp) -> connectivity.Connectivity:
    """All arms at step 4, and two of them at step 0 with two pairs."""
    connectivity.connect(imp, [4], progress=False)
    return connectivity.connect(imp, ["0"], pairs=2, arms=["ticket", "dense"], progress=False)


def children(run: Run, pattern: str = "*") -> list[Path]:
    return sorted((run.path / "connect" / "children").glob(pattern))


def test_rows_say_what_was_measured_between_children_of_one_parent(imp, answered):
    record = json.loads((imp.path / "connect.json").read_text())
    rows = {(row["arm"], row["step"], row["pair"]): row for row in record["rows"]}
    wanted = {(arm, 4, 0) for arm in barriers.ARMS}
    assert set(rows) == wanted | {(arm, 0, pair) for arm in ("dense", "ticket") for pair in (0, 1)}
    assert len(record["rows"]) == len(rows) == len(children(imp)) // 2
    for (arm, _, _), row in rows.items():
        assert row["level"] == (None if arm == "dense" else 2)
        assert row["density"] == (1 if arm == "dense" else imp.ticket.density)
        assert len(row["errors"]) == len(row["losses"]) == record["points"] == 30
        assert row["ends"] == [row["errors"][0], row["errors"][-1]]
        assert row["barrier"] == max(row["errors"]) - sum(row["ends"]) / 2 >= 0
        assert row["statistics_interpolated"] is None
    for path in children(imp):
        assert read_config(path).init_seed is None
    seeds = {(row["pair"], *row["order_seeds"]) for row in rows.values()}
    assert len(seeds) == 2, "a pair has the same two data orders in every arm and at every step"
    assert len({seed for _, *both in seeds for seed in both} | {imp.config.seeds["order"]}) == 5
    ends = rows["ticket", 4, 0]["ends"]
    for path, end in zip(children(imp, "ticket-level-02-at-000004-pair-0?"), ends, strict=True):
        assert 100 - Run(path, read_config(path)).summary["test_accuracy"] == pytest.approx(end)
    assert [each.pairs for each in answered.barriers if each.arm == "dense"] == [2, 1]
    assert "rewinding to step 0; over the weights of step 4" in answered.remark and "--rewind 4it" in answered.remark
    assert answered.picture == imp.path / "connect.png" and answered.picture.read_bytes() == b"a picture"
    drawn = draw_barriers(answered.barriers, answered.rows, answered.metric, "name_of_$a_run")
    assert drawn.startswith(b"\x89PNG")


def test_parents_are_the_network_at_a_step_under_a_mask(imp, answered):
    """W_k is that of the run's own training, as another run of it that rewinds to k keeps it."""
    own = ticket_search.search(
        "imp", levels="0.5", rewind="4it", runs=imp.path.parent, name="rewound", evaluate_every="5it", **TINY
    ).load_rewind_point()
    starts = {
        path.name.partition("-at-")[0]: supermask.load(path)
        for path in (imp.path / "connect/starts").glob("*-at-000004.*")
    }
    assert starts["dense"].state_dict("start").keys() == own.state_dict("final").keys()
    for name, tensor in own.state_dict("final").items():
        assert torch.equal(starts["dense"].state_dict("start")[name], tensor), name
        for arm in ("ticket", "shuffle"):
            start = starts[f"{arm}-level-02"]
            kept = start.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
            assert torch.equal(start.state_dict("start")[name], tensor.where(kept, torch.zeros_like(tensor)))
    ticket, shuffled, fresh = (starts[f"{arm}-level-02"] for arm in ("ticket", "shuffle", "reinit"))
    assert ticket.masks == fresh.masks == imp.ticket.masks != shuffled.masks
    assert ticket.masks.kept_per_tensor == shuffled.masks.kept_per_tensor
    name = "fc1.weight"
    assert not torch.equal(fresh.state_dict("start")[name], ticket.state_dict("start")[name])
    assert [start.meta["rewound_to"] for start in starts.values()] == [4] * 4
    assert not list((imp.path / "connect").rglob("events.out.*")), "TensorBoard would show an entry for each child"


def test_fresh_weights_are_drawn_as_the_runs_own(tmp_path):
    """Of constants with random signs, whose one magnitude follows from the gain."""
    run = ticket_search.search("imp", levels="0.5", runs=tmp_path, **TINY, init="signed-constant")
    connectivity.connect(run, ["0"], arms=["reinit"], progress=False)
    fresh = supermask.load(run.path / "connect/starts/reinit-level-01-at-000000.safetensors")
    for name, mask in fresh.masks.items():
        new, own = fresh.state_dict("start")[name][mask], run.load_level(0).state_dict("start")[name][mask]
        assert torch.equal(new.abs(), own.abs()) and not torch.equal(new, own)


@pytest.mark.parametrize("step", [0, 4])
def test_a_dense_child_in_the_parents_own_order_is_the_runs_own_network(imp, tmp_path, monkeypatch, step):
    """Bit for bit. After step 0 only where the optimizer has no moments, which begin anew with each child."""
    if step:
        flags = {**TINY, "optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
        run = ticket_search.search("dense", runs=tmp_path, **flags)
    else:
        copy = shutil.copytree(imp.path, tmp_path / "imp", ignore=shutil.ignore_patterns("connect*"))
        run = Run(copy, read_config(copy))
    network = run.load_level(0) if run.levels else run.ticket
    own = run.config.seeds["order"]
    monkeypatch.setattr(connectivity, "order_seeds", lambda origin, pair: (own, own + 1))
    found = connectivity.connect(run, [step], arms=["dense"], progress=False)
    same, other = (supermask.load(path / "ticket.safetensors") for path in children(run))
    assert same.states["final"].fingerprint == network.states["final"].fingerprint
    assert other.states["final"].fingerprint != same.states["final"].fingerprint
    assert found.rows[0].ends[0] == pytest.approx(100 - network.meta["accuracy"]["final"]["test"])


def test_nothing_is_trained_twice_and_a_stop_changes_no_byte(imp, answered, tmp_path, monkeypatch):
    """Stopped in the middle of a child and taken up again, and asked once more."""
    copy = Path(shutil.copytree(imp.path, tmp_path / "imp"))
    for place in ("connect", "connect.json", "connect.png"):
        shutil.rmtree(copy / place) if (copy / place).is_dir() else (copy / place).unlink()
    steps, original = [], loop._Loop._train_on

    def train_on(self, x, y):
        steps.append(self.run.path.name)
        if len(steps) == 4 + 6 + 3:  # the parent has 4 steps, the first child 6
            self.run.stop()
        original(self, x, y)

    monkeypatch.setattr(loop._Loop, "_train_on", train_on)
    with pytest.raises(Interrupted, match="children/dense-at-000004-pair-0b"):
        connectivity.connect(copy, [4], arms=["dense"], progress=False)
    assert not (copy / "connect.json").exists()
    connectivity.connect(copy, [4], arms=["dense"], progress=False)
    assert len(steps) == 4 + 6 + 6
    connectivity.connect(copy, [4], arms=["dense"], progress=False)
    connectivity.connect(copy, ["4it"], arms=["dense"], progress=False)
    assert len(steps) == 16
    for path in children(imp, "dense-at-000004-*"):
        again = copy / "connect" / "children" / path.name / "ticket.safetensors"
        assert again.read_bytes() == (path / "ticket.safetensors").read_bytes()
    row = next(row for row in answered.rows if (row.arm, row.step) == ("dense", 4))
    assert json.loads((copy / "connect.json").read_text())["rows"] == [row.model_dump()]
    # Later only what is missing, and the parents that are there serve other arms too.
    connectivity.connect(copy, [4], arms=["dense", "shuffle"], progress=False)
    assert len(steps) == 16 + 2 * 6


def test_a_beginning_that_is_taken_up_at_its_end_has_ended(tmp_path):
    hook, again = (beginning._Keeping([2, 4], supermask.Masks({}), tmp_path) for _ in range(2))
    assert not hook.done()
    hook.step = 4
    again.load_state_dict(hook.state_dict())
    assert again.done()


def test_the_same_by_command(imp, answered, ticket, tmp_path):
    answer = ticket("connect", str(imp.path), "--rewind", "0,4it", "--arms", "dense,ticket", "--json")
    assert answer.code == 0, answer.err
    printed = json.loads(answer.out)
    assert printed["rows"] == [row.model_dump() for row in answered.rows]
    shown = ticket("connect", str(imp.path), "--rewind", "4it")
    assert shown.out.startswith(answered.headline[:40])
    assert "reinit, 0.2" in shown.out and "vs dense" in shown.out
    raw = ticket("connect", str(imp.path), str(imp.path))
    assert (
        "raw barrier between two runs: 0.0 pp; it says nothing of stability, because the runs do not share" in raw.out
    )
    help_text = ticket("connect", "--help").out
    assert "stable (Frankle et al., Linear" in " ".join(help_text.split())


def test_networks_with_norms_are_told_apart_from_their_statistics(tmp_path):
    first = ticket_search.search("dense", "lenet-300-100-bn", runs=tmp_path, lr=0.03, **TINY)
    found = connectivity.connect(first, [STEPS - 1], progress=False)
    assert set(found.left_out) == {"ticket", "reinit", "shuffle"}
    (row,) = found.rows
    inner = row.statistics_interpolated
    assert inner is not None and len(inner.errors) == 30
    assert inner.losses != row.losses
    assert found.barriers[0].interpolated == inner.barrier == find_barrier(inner.errors)
    raw = connectivity.raw_barrier(first, children(first)[1], progress=False)
    assert raw.barrier == find_barrier(raw.errors) and raw.barrier_statistics_interpolated is not None
    assert raw.losses[0] != raw.losses[-1]


WRONG = {
    "late": ("imp", {"rewind": ["0", "10it", "2ep"]}, "--rewind 10it: expected less than the 10 steps.*--rewind 2ep"),
    "no step": ("imp", {"rewind": ["100", "x"]}, "--rewind 100: expected steps or epochs.*--rewind x"),
    "none": ("imp", {"rewind": []}, "--rewind: 0 steps, expected from 1 to 20"),
    "level": (
        "imp",
        {"level": 3, "pairs": 0},
        "--pairs 0: expected a number from 1.*--level 3: .* it has levels 1 to 2",
    ),
    "dense level": ("imp", {"level": 0}, "--level 0: after the dense level 0 it has levels 1 to 2"),
    "arm": ("imp", {"arms": ["tickets"]}, "unknown arm 'tickets'; did you mean 'ticket'"),
    "dense": ("dense", {"level": 1, "arms": ["shuffle"]}, "it is a dense run, whose.*--arms shuffle: .*has no mask"),
    "frozen": ("edge-popup", {}, "a run of edge-popup, which never trains its weights"),
    "of a ticket": ("trained", {}, "trains a ticket that another run has found"),
    "unfinished": ("unfinished", {}, "unfinished is not finished; `ticket resume"),
    "own model": ("own", {}, "names code that would be imported: model some_module:make"),
    "no run": ("impp", {}, "there is no run 'impp'.*did you mean 'imp'"),
    "lost level": ("lost", {}, "levels/02/ticket.safetensors is missing"),
    "filters": ("filters", {"arms": ["shuffle"]}, "keeps units of filter, and a shuffle would move single weights"),
    "restored": ("restored", {}, "optimizer's restored moments, which no child has"),
    "changing": ("rigl", {}, "prunes while it trains"),
    "edited": ("edited", {}, r"connect.json is damaged: rows.0.arm"),
}


@pytest.fixture(scope="module")
def others(imp, tmp_path_factory) -> Path:
    """Runs that connect refuses; most are only said to be, as nothing of them is read after that."""
    folder = tmp_path_factory.mktemp("others")
    shutil.copytree(imp.path, folder / "imp", ignore=shutil.ignore_patterns("connect*"))
    ticket_search.search("dense", runs=folder, name="dense", **TINY)
    ticket_search.train(imp.path, runs=folder, name="trained", progress=False)

    def like(name: str, *edits: tuple[str, str]) -> Path:
        place = Path(shutil.copytree(folder / "imp", folder / name))
        text = (place / "config.toml").read_text()
        for before, after in edits:
            assert before in text
            text = text.replace(before, after)
        (place / "config.toml").write_text(text)
        (place / "checksums.json").unlink()
        return place

    (like("unfinished") / "summary.json").unlink()
    (like("lost") / "levels" / "02" / "ticket.safetensors").unlink()
    like("own", ('model = "lenet-300-100"', 'model = "some_module:make"'))
    like("filters", ('granularity = "weight"', 'granularity = "filter"'))
    like("restored", ('rewind_optimizer = "fresh"', 'rewind_optimizer = "restore"'), ('rewind = "0"', 'rewind = "2it"'))
    (like("edited") / "connect.json").write_text('{"metric": {}, "points": 30, "rows": [{"arm": "other"}]}')
    for method in ("edge-popup", "rigl"):
        shared = ["density", "epochs", "batch_size", "seed"]
        place = like(method)
        lines = [line for line in (place / "config.toml").read_text().splitlines() if line.split(" = ")[0] in shared]
        (place / "config.toml").write_text("\n".join([f'method = "{method}"', *lines]) + "\n")
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_and_nothing_is_done(others, case):
    name, asked, message = WRONG[case]
    with pytest.raises(RequestError, match=re.compile(message, re.DOTALL)):
        connectivity.connect(name, **asked, runs=others, progress=False)
    assert not list(others.glob("*/connect"))


def test_two_runs_need_one_network_and_one_data_set(others, imp):
    for other, message in (
        ("edge-popup", "never trains its weights"), ("unfinished", "is not finished"), ("nothing", "there is no run"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            connectivity.raw_barrier("dense", other, runs=others, progress=False)
    wide = ticket_search.search("dense", runs=others, name="wide", **{**TINY, "model_args": ("width=0.05",)})
    with pytest.raises(RequestError, match=r"networks of .* differ: fc1.weight \(9, 64\) and \(15, 64\)"):
        connectivity.raw_barrier("dense", wide, runs=others, progress=False)


def test_two_runs_and_the_flags_of_one_are_refused(ticket, others):
    answer = ticket("connect", "dense", "imp", "--rewind", "0", "--pairs", "2", "--runs", str(others))
    assert answer.code == 2 and "--rewind, --pairs and two runs" in answer.err
    assert ticket("connect", "dense", "imp", "imp", "--runs", str(others)).code == 2


def row_of(arm: str, step: int, pair: int, barrier: float) -> barriers.PairRow:
    return barriers.PairRow(
        arm=arm, level=None if arm == "dense" else 1, density=1.0, step=step, pair=pair, order_seeds=[1, 2],
        barrier=barrier, loss_barrier=0.1, ends=[10.0, 12.0], errors=[10.0, 12.0], losses=[1.0, 1.0],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({0: 8.6, 100: 5.1, 400: 0.5}, "is stable from step 400 on (barrier 0.5 pp)"),
        ({0: 0.5, 100: 0.1}, "is stable from step 0 on (barrier 0.5 pp)"),
        ({0: 1.0, 100: 3.0, 400: 1.9}, "is stable from step 400 on (barrier 1.9 pp)"),
        ({0: 8.0, 100: 2.0}, "is not stable at any step that was tried (lowest barrier 2.0 pp at step 100)"),
        ({0: 1.5, 100: 3.0}, "is not stable at the last step that was tried (lowest barrier 1.5 pp at step 0)"),
        ({7: 4.0}, "is not stable at step 7 (barrier 4.0 pp)"),
    ],
)
def test_the_headline_says_from_which_step_on(values, said):
    rows = [row_of("dense", step, pair, value + pair - 1) for step, value in values.items() for pair in range(3)]
    assert (
        barriers.headline(barriers.summarize(rows), ACCURACY)
        == f"dense training {said}; measured on 3 pairs of children"
    )


def test_arms_are_compared_pair_by_pair_and_other_metrics_have_no_threshold():
    rows = [row_of("dense", 0, pair, 8.0 + pair) for pair in range(3)]
    rows += [row_of("ticket", 0, pair, 4.0 + pair) for pair in (1, 2)]
    dense, kept = barriers.summarize(rows)
    assert (dense.mean, dense.pairs, dense.to_dense) == (9.0, 3, None)
    assert (kept.mean, kept.to_dense.mean, kept.to_dense.n, kept.to_dense.std) == (5.5, -4.0, 2, 0.0)
    assert kept.interval is not None and kept.end == 11
    said = barriers.headline([dense, kept], METRICS["mse"])
    assert "stable" not in said.replace("unstable", "") and "dense training: barrier 9 mse at step 0" in said
