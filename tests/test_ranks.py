"""One training on several ranks, beside the same search in one process."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from test_image_folder import write_images
from training_ranks import (
    CASES,
    RANKS,
    SHARED,
    free_port,
    leave_alone,
    leave_in_turn,
    lose_numbers,
    raise_on_the_first,
    refuse,
    search_all,
    search_case,
    search_images,
    search_shared,
    stop_and_go_on,
    stop_rehearsal,
    stop_shared,
    tell_of_norms,
    wait_until,
    work,
)

import supermask
from supermask import fingerprint
from supermask.choosing.gradients import Shared
from ticket_search import RequestError, resume
from ticket_search.contract.metric import METRICS
from ticket_search.data.augmentation import Augmentation
from ticket_search.data.dataset import from_arrays
from ticket_search.methods import usable_methods
from ticket_search.runs import ranks
from ticket_search.training import shards
from ticket_search.training.measures import Batch, make_measure
from ticket_search.training.shards import WORKS_ON_A_CPU as SHARDS

METHODS = [method.name for method in usable_methods()[0]]
NAMES = [*METHODS, *CASES]
# Norms take their statistics from the rows of each rank, and ranks drop other activations: no number is that of one
# process.
OWN_WAY = ("early-bird", "norms, rewound", "dropout")
CODE = """
import sys
sys.path.insert(0, sys.argv[2])
from training_ranks import search_case
search_case("imp, rewound", sys.argv[1])
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory, forkserver_with_torch) -> tuple[Path, list[dict[str, Any]]]:
    """What two ranks have found, and in which folder."""
    folder = tmp_path_factory.mktemp("ranks")
    for number, name in enumerate(("ant", "bee")):
        write_images(folder / "images" / "train" / name, 16, number)
        write_images(folder / "images" / "test" / name, 6, 10 + number)
        for part, count in (("train", 1), ("test", 2)):
            for path in sorted((folder / "images" / part / name).iterdir())[:count]:
                path.write_bytes(b"no image")
    parts = [
        ("images", search_images, (str(folder / "images"), str(folder / "runs"))),
        ("searches", search_all, (str(folder / "runs"), NAMES)),
        ("refused", refuse, (str(folder / "refused"),)),
        ("stopped", stop_and_go_on, (str(folder / "stopped"),)),
        ("dropped", stop_and_go_on, (str(folder / "dropped"), None, "dropout", "dropout")),
        ("numbers", lose_numbers, (str(folder / "numbers"),)),
        ("rehearsal", stop_rehearsal, ()),
        ("raised", raise_on_the_first, ()),
        ("norms", tell_of_norms, ()),
        ("left", leave_in_turn, ()),
        *(
            [("shared", search_shared, (str(folder / "shared"),)), ("shared on", stop_shared, (str(folder / "on"),))]
            * SHARDS
        ),
        # The last: after it the two are no group any more.
        ("alone", leave_alone, (str(folder / "alone"),)),
    ]
    run_ranks(work, str(folder), free_port(), parts, ranks=RANKS)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def losses(folder: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss/train"], row["loss/validation"]) for row in rows if "loss/train" in row]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_find_what_one_process_finds(name, together, tmp_path):
    _, found = together
    first, second = (rank["searches"][name] for rank in found)
    assert first["masks"], "a ticket was made"
    assert first["masks"] == second["masks"], "every level's masks, as each rank has them"
    assert first["summary"] == second["summary"]
    if name in OWN_WAY:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        alone = search_case(name, str(tmp_path))
    pairs = list(zip(losses(Path(first["path"])), losses(alone.path), strict=True))
    assert len(pairs) >= 50
    for one, other in pairs:
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    ticket, expected = supermask.load(Path(first["path"], "ticket.safetensors")), alone.ticket
    for part in ticket.tasks or [None]:
        mine, theirs = (each if part is None else each.task(part) for each in (ticket, expected))
        assert mine.masks == theirs.masks
        for state in ("start", "final"):
            torch.testing.assert_close(mine.state_dict(state), theirs.state_dict(state), rtol=1e-6, atol=1e-8)


def test_a_folder_of_images_is_read_by_shares(together, tmp_path):
    folder, found = together
    with pytest.warns(UserWarning, match="cannot be read"):
        alone = search_images(str(folder / "images"), str(tmp_path))
    for rank in found:
        assert rank["images"]["bad"] == alone["bad"], "what any rank has met"
        assert rank["images"]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    pairs = (losses(Path(each, "images")) for each in (folder / "runs", tmp_path))
    torch.testing.assert_close(*map(torch.tensor, pairs), rtol=1e-3, atol=1e-3)


def test_only_the_first_rank_writes_and_the_folder_is_one_run(together):
    folder, _ = together
    run = folder / "runs" / "imp-rewound"
    assert json.loads((run / "environment.json").read_text())["ranks"] == RANKS
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "the rows of one rank"
    assert not list(run.glob("**/.tmp*"))
    assert resume(run, progress=False).finished


def test_what_ranks_cannot_do_together_is_told_on_each(together):
    folder, found = together
    for told in (rank["refused"] for rank in found):
        assert told["few"] == (
            "RequestError: 2 ranks and batches of 1 samples: expected at least one sample of a batch for each rank"
        )
        assert told["flags"] == "RequestError: the ranks do not have the same run: lr: rank 0 has 0.1, rank 1 has 0.2"
        assert told["weights"].startswith("RequestError: the ranks do not have the same run: first weights: rank 0 has")
        assert told["none"].startswith("RequestError: there is no run")
    assert not (folder / "refused").exists()


def test_a_signal_that_one_rank_hears_stops_both_after_one_step(together):
    folder, (first, second) = together
    one, other = first["stopped"], second["stopped"]
    assert one == other
    assert one["status"] == 75 and one["saved"] and 12 <= one["last"] < 49
    undisturbed = supermask.load(folder / "runs" / "edge-popup" / "ticket.safetensors")
    assert one["masks"] == fingerprint(undisturbed.masks)


@pytest.fixture(scope="module")
def unshared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unshared")
    search_shared(str(folder), fsdp=False)
    return folder


@pytest.mark.skipif(not SHARDS, reason="a PyTorch whose fully_shard does not work on a CPU")
@pytest.mark.parametrize("name", SHARED)
def test_a_training_that_is_shared_out_is_that_of_one_process(name, together, unshared):
    folder, _ = together
    one, other = (each / name.replace(" ", "-") for each in (folder / "shared", unshared))
    torch.testing.assert_close(torch.tensor(losses(one)), torch.tensor(losses(other)), rtol=1e-6, atol=1e-6)
    ticket, expected = (supermask.load(each / "ticket.safetensors") for each in (one, other))
    assert fingerprint(ticket.masks) == fingerprint(expected.masks)
    torch.testing.assert_close(ticket.state_dict("final"), expected.state_dict("final"), rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(not SHARDS, reason="a PyTorch whose fully_shard does not work on a CPU")
def test_a_training_that_is_shared_out_stops_and_goes_on(together):
    folder, found = together
    for rank in found:
        assert rank["shared on"]["status"] == 75 and rank["shared on"]["saved"]
        ticket = supermask.load(folder / "shared" / "imp" / "ticket.safetensors")
        assert rank["shared on"]["masks"] == fingerprint(ticket.masks)


@pytest.mark.skipif(not SHARDS, reason="a PyTorch whose fully_shard does not work on a CPU")
def test_a_training_that_changes_masks_is_not_shared_out(together):
    folder, found = together
    for told in (rank["shared"] for rank in found):
        assert set(told) == {"edge-popup", "rigl", "gradual", "gates", "early-bird"}
        for method, text in told.items():
            assert text.startswith("--fsdp goes with methods whose masks are held while the weights train")
            assert text.endswith(f"the trainings of {method} change or look at more than that")
    assert not (folder / "shared" / "none").exists()


def test_a_stopped_run_with_dropout_is_the_one_that_was_never_stopped(together):
    folder, found = together
    for rank in found:
        assert rank["dropped"]["status"] == 75 and 12 <= rank["dropped"]["last"] < 49
    stopped, whole = (losses(folder / each / "dropout") for each in ("dropped", "runs"))
    assert stopped == whole


def test_weights_that_are_no_numbers_are_not_saved(together):
    folder, found = together
    kinds = ["whole", *["shared"] * SHARDS]
    for told in (rank["numbers"] for rank in found):
        assert [*told] == kinds
        for text in told.values():
            assert "NaN or infinite" in text and "what was saved before is kept" in text
    for kind in kinds:
        assert not (folder / "numbers" / kind / "state.pt").exists(), "the first state would have been that one"


def test_a_signal_to_one_rank_ends_the_timing_of_steps(together):
    assert [rank["rehearsal"] for rank in together[1]] == ["130", "130"]


def test_statistics_of_each_rank_are_told_of(together):
    for with_norms, without in (rank["norms"] for rank in together[1]):
        assert [text for text in with_norms if text not in without] == [
            "batch norm takes its statistics from the rows that each of the 2 ranks has of a batch, and those that are kept "
            "are the first rank's"
        ]


def test_what_fails_on_the_first_rank_is_told_on_all(together):
    first, second = (rank["raised"] for rank in together[1])
    assert first == ["TwoError: this and that", "RequestError: ['one', 'two']", "RunError: failed"]
    assert second == ["RunError: TwoError: this and that", *first[1:]]


def test_a_rank_that_fails_alone_leaves_no_half_group(together):
    first, second = (rank["alone"] for rank in together[1])
    assert "another of the 2 ranks has ended or cannot be reached" in first[0]
    assert second == [
        "of this rank alone",
        "this process has left the other ranks in the middle of a search, by an error that they did not have: start all "
        "of them anew",
    ]
    assert "done" not in first


def test_the_first_rank_leaves_last(together):
    first, second = (rank["left"] for rank in together[1])
    assert first > second


def test_parameters_that_change_are_told_of():
    error = RuntimeError("Expected to have finished reduction in the prior iteration before starting a new one. This")
    assert ranks.is_lost(error)
    assert ranks.describe_lost(error).startswith("some parameters of the network get gradients in one step and none in")
    assert not ranks.is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ranks.is_lost(ValueError("the process group of workers"))


class Tied(torch.nn.Module):
    """Blocks of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        own, twice, tied = (torch.nn.Linear(4, 4) for _ in range(3))
        self.head = torch.nn.Linear(4, 4)
        self.head.weight = tied.weight
        self.blocks = torch.nn.ModuleList(
            [own, tied, torch.nn.ModuleDict({"inner": torch.nn.Linear(4, 4)}), torch.nn.ReLU()]
        )
        self.again = torch.nn.Sequential(twice, twice)
        self.expected = [own, twice]


def test_the_parts_of_a_network_that_are_gathered_by_themselves():
    model = Tied()
    assert shards._blocks(model) == model.expected


def start_rank(rank: int, port: int, runs: Path, said: Path) -> subprocess.Popen[bytes]:
    names = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    environment = {
        **os.environ, **{name: str(value) for name, value in names.items()}, "MASTER_ADDR": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONFAULTHANDLER": "1",
    }  # fmt: skip
    with (said / f"{rank}.txt").open("wb") as file:
        words = [sys.executable, "-c", CODE, str(runs), str(Path(__file__).parent)]
        return subprocess.Popen(words, env=environment, stderr=file)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_other_and_any_number_of_ranks_goes_on(killed, together, tmp_path):
    whole, _ = together
    port, runs = free_port(), tmp_path / "runs"
    processes = [start_rank(rank, port, runs, tmp_path) for rank in range(RANKS)]
    metrics = runs / "imp-rewound" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 60)
    processes[killed].kill()
    began = time.monotonic()
    assert processes[1 - killed].wait(timeout=30) == 1
    assert time.monotonic() - began < 30
    said = (tmp_path / f"{1 - killed}.txt").read_text()
    assert "RunError: another of the 2 ranks has ended or cannot be reached" in said
    assert "the same command goes on from there, with as many ranks or others" in said
    if killed:
        going_on = [start_rank(rank, port + 1, runs, tmp_path) for rank in range(RANKS)]
        codes = [process.wait(timeout=120) for process in going_on]
        assert codes == [0] * RANKS, [(tmp_path / f"{rank}.txt").read_text() for rank in range(RANKS)]
    else:
        search_case("imp, rewound", str(runs))
    after, undisturbed = (
        supermask.load(each / "imp-rewound" / "ticket.safetensors") for each in (runs, whole / "runs")
    )
    assert after.masks == undisturbed.masks
    torch.testing.assert_close(after.state_dict("final"), undisturbed.state_dict("final"), rtol=1e-6, atol=1e-8)
    rows, expected = (torch.tensor(losses(each / "imp-rewound")) for each in (runs, whole / "runs"))
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


def test_shares_make_up_the_batches_of_one_process():
    x = torch.arange(50 * 3 * 8 * 8, dtype=torch.float32).reshape(50, 3, 8, 8)
    data = from_arrays((x.numpy(), (torch.arange(50) % 10).numpy()), 0).with_seed(3)
    data = type(data)(**{**vars(data), "augmentation": Augmentation(crop=2, flip=True)})
    order = torch.randperm(data.train_size, generator=torch.Generator().manual_seed(0))
    whole = list(data.train_batches(order, 7, first=1, epoch=2))
    for world in (2, 3):
        shares = [list(data.with_share(rank, world).train_batches(order, 7, first=1, epoch=2)) for rank in range(world)]
        for number, (images, labels) in enumerate(whole):
            for rank, share in enumerate(shares):
                assert torch.equal(share[number][0], images[rank::world])
                assert torch.equal(share[number][1], labels[rank::world])
        held = list(data.batches("validation", 2))
        parts = [list(data.with_share(rank, world).batches("validation", 2)) for rank in range(world)]
        assert [len(part) for part in parts] == [len(held[rank::world]) for rank in range(world)]
        for rank, part in enumerate(parts):
            assert all(torch.equal(a[0], b[0]) for a, b in zip(part, held[rank::world], strict=True))


@pytest.mark.parametrize("name", METRICS)
def test_the_states_of_parts_make_up_that_of_the_whole(name):
    torch.manual_seed(0)
    measure = make_measure(name)
    floats = name in ("mse", "mae", "r2")
    outputs = torch.randn(60, 4).double()
    targets = torch.randn(60, 4).double() + 1e3 if floats else torch.randint(0, 4, (60,))

    def state(rows: slice) -> torch.Tensor:
        found = measure.start(torch.device("cpu"))
        for part in filter(len, torch.arange(60)[rows].split(7)):
            loss = outputs[part].square().mean()
            found = measure.add(found, Batch(outputs[part], targets[part], loss, len(part)))
        return found

    nothing = measure.start(torch.device("cpu"))
    for cut in (0, 1, 30, 60):
        merged = measure.merge(state(slice(0, cut)), state(slice(cut, 60)))
        for found in (merged, measure.merge(nothing, merged), measure.merge(merged, nothing)):
            assert measure.value(found) == pytest.approx(measure.value(state(slice(None))), rel=1e-9)
    assert measure.merge(nothing, nothing).isfinite().all()


@pytest.mark.parametrize("score", ["snip", "grasp", "taylor", "movement", "wanda", "sparsegpt"])
def test_scores_of_shared_batches_are_those_of_all(score):
    """Two threads stand for two processes: each adds what the other has summed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5)).double()
    batches = [(torch.randn(n, 12).double(), torch.randint(0, 5, (n,))) for n in (4, 4, 9, 2)]
    meeting, sums = threading.Barrier(2), [torch.empty(0), torch.empty(0)]

    def prune(rank: int) -> supermask.Masks:
        def add(tensor: torch.Tensor) -> None:
            sums[rank] = tensor.clone()
            meeting.wait(20)
            other = sums[1 - rank].clone()
            meeting.wait(20)
            tensor.add_(other)

        shared = Shared(batches[rank::2], add)
        return supermask.prune(copy.deepcopy(model), 0.3, score, batches=shared)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prune, range(2))
    expected = supermask.prune(model, 0.3, score, batches=batches)
    assert fingerprint(first) == fingerprint(second) == fingerprint(expected)
    alone = supermask.prune(model, 0.3, score, batches=batches[::2])
    assert fingerprint(alone) != fingerprint(expected), "a share alone gives something else"


LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def launched(monkeypatch):
    def launch(**other: str) -> None:
        for name, value in {**LAUNCHED, **other}.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize("words", [["compare", "runs"], ["sweep", "some.toml"], ["doctor"], ["export", "x"]])
def test_a_command_of_one_process_is_refused_on_several_ranks(words, launched, ticket):
    launched()
    answer = ticket(*words)
    assert answer.code == 2
    assert answer.err == (
        f"rank 1: error: ticket {words[0]} is for one process: expected it without torchrun, which search, train and "
        "resume are for\n"
    )


def test_several_seeds_are_several_runs(launched, ticket):
    launched(RANK="0")
    answer = ticket("search", "--method", "dense", "--seeds", "0-1")
    assert answer.code == 2 and "error: --seeds are several runs: expected one --seed" in answer.err


def test_the_ranks_of_an_environment(launched):
    assert ranks.launched() == ranks.ALONE
    launched()
    assert ranks.launched() == ranks.Ranks(1, 2, 1, 2)
    launched(WORLD_SIZE="two")
    with pytest.raises(RequestError, match="WORLD_SIZE=two: expected whole numbers, as torchrun sets them"):
        ranks.launched()
    launched(RANK="2")
    with pytest.raises(RequestError, match="RANK=2 and WORLD_SIZE=2: expected a rank below the size"):
        ranks.launched()


def test_a_gpu_for_each_process(launched, monkeypatch):
    launched()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(RequestError, match="2 processes on this machine, which has 1 GPUs that may be used"),
        ranks.together("auto"),
    ):
        pass


def test_alone_nothing_is_asked_of_anybody(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: pytest.fail("asked"))
    with ranks.together() as group:
        assert not group.several and group.first
        assert ranks.tell(3) == 3 and ranks.gather(4) == [4] and ranks.most([5, 6]) == [5, 6]
        assert ranks.first(lambda: 7) == 7
        ranks.wait()
        tensor = torch.ones(2)
        assert ranks.add(tensor) is tensor and tensor.tolist() == [1, 1]


@pytest.mark.slow
def test_torchrun_on_the_command_line(tmp_path):
    words = shlex.split(
        "search --method imp --density 0.5 --fraction 0.5 --epochs 2 --train-size 300 --threads 1 --runs runs"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ticket_search"]
    found = subprocess.run([*torchrun, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert len(re.findall("test accuracy", found.stdout)) == len(re.findall("the ticket: ", found.stdout)) == 1
    assert "Traceback" not in found.stderr and "Warning" not in found.stderr
    wrong = subprocess.run(
        [*torchrun, "search", "--method", "imp", "--densty", "0.5"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "error: unknown flag --densty; did you mean '--density'?" in wrong.stderr


@pytest.mark.slow
def test_torchrun_stops_and_goes_on(tmp_path):
    words = shlex.split("search --method edge-popup --epochs 60 --batch-size 10 --threads 1 --runs runs --name x")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ticket_search"]
    process = subprocess.Popen(
        [*torchrun, *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "runs" / "x" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert "stopped; continue with:\n  ticket resume runs/x" in said
    assert (tmp_path / "runs" / "x" / "state.pt").exists()
