"""What the processes of test_ranks.py do: each is one of two ranks that search together."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from method_tests import FEW
from torch import nn

from supermask import fingerprint
from ticket_search import RequestError, RunError, resume, search
from ticket_search.methods import find_method
from ticket_search.running.read_config import find_kind
from ticket_search.runs import ranks
from ticket_search.runs.run import Run
from ticket_search.training import conclude
from ticket_search.training.shards import WORKS_ON_A_CPU as SHARDS

RANKS = 2
# Five epochs of ten steps; numbers that do not depend on who adds up what first but in their last digits.
FLAGS: dict[str, Any] = {
    "train_size": 300, "batch_size": 30, "epochs": 5, "seed": 1, "threads": 1, "precision": "fp64", "evaluate_every": "1it",
}  # fmt: skip
DENSITY = 0.3
# Of fewer samples.
TOKENS = {"batch_size": 10, "epochs": 10}


def own_flags(method: str) -> dict[str, Any]:
    """What makes a search of any method short."""
    fields = find_method(method).Config.model_fields
    found = {name: value for name, value in FEW.items() if name in fields}
    if not find_kind(method).traits.dense:
        found["density"] = DENSITY
    if method == "early-bird":
        found |= {"model": "lenet-300-100-bn", "unit": "weight"} if "unit" in fields else {"model": "resnet20"}
    return found


class Tokens(nn.Module):
    """A network of tokens, of which some are not to be predicted: shares of a batch do not weigh alike."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 16), nn.Linear(16, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embedding(tokens))).movedim(-1, 1)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 7, (80, 6), generator=generator)
    return x, x.roll(-1, 1).masked_fill(torch.rand(80, 6, generator=generator) < 0.4, -100)


class Late(nn.Module):
    """A network of which one layer is never used: it gets no gradient on any rank."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.flatten(1))


class Dropping(nn.Module):
    """A network that draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 30), nn.Linear(30, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.dropout(torch.relu(self.first(x.flatten(1))), 0.3, self.training))


# What is searched beside every method with its defaults: by name, the method and its flags.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "edge-popup, global": ("edge-popup", {"allocation": "global", "density": DENSITY}),
    "imp, rewound": ("imp", {"density": 0.4, "fraction": 0.4, "rewind": "4it", "rewind_optimizer": "restore"}),
    "a last batch of 7": ("edge-popup", {"batch_size": 7, "train_size": 70, "density": DENSITY}),
    "imp, batches of 7": ("imp", {"batch_size": 7, "train_size": 70, "density": 0.5, "fraction": 0.5}),
    "in parts": ("snip", {"accumulate": 3, "density": DENSITY, "clip": 0.5}),
    "in parts of 7": ("edge-popup", {"accumulate": 2, "batch_size": 7, "train_size": 70, "density": DENSITY}),
    "tokens": ("imp", {"model": Tokens, "data": tokens, "density": 0.5, "fraction": 0.5, "train_size": None, "metric": "accuracy", **TOKENS}),
    "tokens in parts": (
        "edge-popup", {"model": Tokens, "data": tokens, "density": 0.5, "train_size": None, "accumulate": 2, "metric": "accuracy", **TOKENS},
    ),
    "a layer that is not used": ("one-shot", {"model": Late, "density": DENSITY}),
    "norms, rewound": ("one-shot", {"model": "lenet-300-100-bn", "density": DENSITY, "rewind": "4it"}),
    "dropout": ("random", {"model": Dropping, "density": DENSITY}),
    "penalized": ("bernoulli", {"density": DENSITY}),
}  # fmt: skip


def search_case(name: str, runs: str) -> Any:
    """A search of CASES, or by a method of that name."""
    method, flags = CASES.get(name) or (name, own_flags(name))
    flags = {**FLAGS, **flags}
    data = flags.pop("data", lambda: "digits")()
    flags = {key: value for key, value in flags.items() if value is not None}
    folder = name.replace(" ", "-").replace(",", "")
    return search(method, data=data, runs=runs, name=folder, progress=False, **flags)


@contextmanager
def tickets_seen() -> Iterator[list[str]]:
    """The fingerprints of the masks of all tickets that are made in this process."""
    seen: list[str] = []
    make = conclude.make_ticket

    def watch(*arguments: Any, **more: Any) -> Any:
        ticket = make(*arguments, **more)
        seen.append(fingerprint(ticket.masks))
        return ticket

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conclude, "make_ticket", watch)
        yield seen


def search_all(folder: str, names: list[str]) -> dict[str, Any]:
    """Every search, and the masks that this rank has seen."""
    found, summaries = {}, list[dict[str, Any]]()
    finish = Run.finish

    def watch(self: Run, summary: Any) -> None:
        summaries.append({key: value for key, value in summary.items() if key not in ("seconds", "cost")})
        finish(self, summary)

    Run.finish = watch  # type: ignore[method-assign]
    for name in names:
        with tickets_seen() as seen:
            run = search_case(name, folder)
        found[name] = {"masks": seen, "path": str(run.path), "summary": dict(summaries[-1])}
    return found


# Of which the trainings may be shared out.
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "imp": ("imp", {"density": 0.4, "fraction": 0.4, "rewind": "4it", "rewind_optimizer": "restore"}),
    "snip": ("snip", {"density": DENSITY, "accumulate": 3, "clip": 0.5}),
    "wanda": ("wanda", {"density": DENSITY}),
    "batches of 7": ("random", {"density": DENSITY, "batch_size": 7, "train_size": 70}),
    "unlike parts": ("random", {"density": DENSITY, "batch_size": 7, "train_size": 70, "accumulate": 3}),
    "blocks": (
        "one-shot",
        {"density": DENSITY, "model": "conv2", "model_args": ["width=0.25"], "optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    ),
}  # fmt: skip


def search_shared(folder: str, fsdp: bool = True) -> dict[str, str]:
    """Searches whose trainings are shared out, and what is said of those that cannot be."""
    found = {}
    for name, (method, flags) in SHARED.items():
        given = {**FLAGS, "epochs": 2, **flags, **({"fsdp": True} if fsdp else {})}
        search(method, data="digits", runs=folder, name=name.replace(" ", "-"), progress=False, **given)
    for method in ("edge-popup", "rigl", "gradual", "gates", "early-bird") if fsdp else ():
        try:
            search(method, data="digits", runs=f"{folder}/none", progress=False, fsdp=True, **FLAGS)
        except RequestError as error:
            found[method] = str(error)
    return found


def stop_shared(folder: str) -> dict[str, Any]:
    """A search that is shared out is stopped in the middle of a training, and goes on."""
    method, flags = SHARED["imp"]
    return stop_and_go_on(folder, lambda: search(
        method, data="digits", runs=folder, name="edge-popup", progress=False, fsdp=True, **{**FLAGS, "epochs": 2, **flags},
    ))  # fmt: skip


FOLDER: dict[str, Any] = {
    "model": "conv2", "image_size": 8, "workers": 0, "batch_size": 6, "epochs": 3, "threads": 1, "density": 0.5,
    "evaluate_every": "1it", "max_bad_images": 5,
}  # fmt: skip


def search_images(images: str, folder: str) -> dict[str, Any]:
    """A search on a folder of images, of which two cannot be read: each rank meets its own."""
    run = search("random", data="imagefolder", data_dir=images, runs=folder, name="images", progress=False, **FOLDER)
    return {"bad": run.summary["bad_images"], "loss": run.summary["val_loss"]}


def refuse(folder: str) -> dict[str, str]:
    """What is said of requests that the ranks cannot carry out; nothing is written."""
    rank, found = int(os.environ["RANK"]), {}

    def told(name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except (RequestError, RunError) as error:
            found[name] = f"{type(error).__name__}: {error}"

    few = {**FLAGS, "epochs": 1}
    told("few", lambda: search("dense", runs=folder, progress=False, **{**few, "batch_size": 1}))
    told("flags", lambda: search("dense", runs=folder, progress=False, **{**few, "lr": 0.1 + rank / 10}))
    told("weights", lambda: search("dense", lambda: other_weights(rank), runs=folder, progress=False, **few))
    told("none", lambda: resume(f"{folder}/none", progress=False))
    return found


def other_weights(rank: int) -> nn.Module:
    torch.manual_seed(rank)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def lose_numbers(folder: str) -> dict[str, str]:
    """A weight becomes infinite in the middle of a training: no state is saved over the good one."""
    from ticket_search.training import loop

    train_on, found = loop._Loop._train_on, {}

    def train(self: Any, x: Any, y: Any) -> None:
        train_on(self, x, y)
        if self.step == 15:
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter.mul_(torch.inf)
            self.run.stop(75)

    for name, more in {"whole": {}, **({"shared": {"fsdp": True}} if SHARDS else {})}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Loop, "_train_on", train)
            try:
                flags = {**FLAGS, "evaluate_every": "5ep", **more}
                search("dense", data="digits", runs=folder, name=name, progress=False, **flags)
            except (RunError, KeyboardInterrupt) as error:
                found[name] = str(error)
    return found


def stop_rehearsal() -> str:
    """A signal comes to one rank while steps are timed."""
    from ticket_search.contract.stops import Stopped
    from ticket_search.running.plan import make_plan
    from ticket_search.running.request import check_request
    from ticket_search.running.search import prepare
    from ticket_search.runs.rehearsal import Rehearsal

    tick = Rehearsal.tick

    def signal_at_the_sixth(self: Any) -> None:
        if len(self.ends) == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGINT)
        tick(self)

    with pytest.MonkeyPatch.context() as patch, ranks.together("cpu"):
        patch.setattr(Rehearsal, "tick", signal_at_the_sixth)
        try:
            make_plan(*prepare(check_request("dense", "lenet-300-100", "digits", dict(FLAGS))))
        except Stopped as error:
            return str(error.status)
    return "planned"


def tell_of_norms() -> list[list[str]]:
    """What is said before a training, of a network with batch norm and of one without."""
    from ticket_search.running.request import check_request
    from ticket_search.running.search import prepare

    found = []
    with ranks.together("cpu"):
        for model in ("lenet-300-100-bn", "lenet-300-100"):
            config, setup = prepare(check_request("dense", model, "digits", dict(FLAGS)))
            network = setup.make_model(config)
            found.append(setup.remarks(network, setup.targets(config, network)))
    return found


class TwoError(Exception):
    """One that does not come out of another process."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def raise_on_the_first() -> list[str]:
    """What each rank is told of what fails on the first one."""
    told = []
    with ranks.together("cpu"):
        for error in (TwoError("this", "that"), RequestError(["one", "two"]), RunError("failed")):
            try:
                ranks.first(lambda error=error: (_ for _ in ()).throw(error))
            except (RequestError, RunError, TwoError) as caught:
                told.append(f"{type(caught).__name__}: {getattr(caught, 'problems', caught)}")
    return told


def leave_in_turn() -> float:
    """When this rank takes leave of the group at the end of a process. The second is late."""
    rank, times = int(os.environ["RANK"]), list[float]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "destroy_process_group", lambda: times.append(time.monotonic()))
        time.sleep(0.5 * rank)
        ranks._leave_in_turn()
    return times[0]


def leave_alone(folder: str) -> list[str]:
    """One rank fails by itself: the other learns of it, and neither goes on with the group as if nothing had been."""
    from ticket_search.training import loop

    rank, train_on, told = int(os.environ["RANK"]), loop._Loop._train_on, []

    def train(self: Any, x: Any, y: Any) -> None:
        if self.step == 12 and rank == 1:
            raise RunError("of this rank alone")
        train_on(self, x, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_train_on", train)
        for _ in range(2):
            try:
                search_case("edge-popup", folder)
                told.append("done")
            except RunError as error:
                told.append(str(error))
    return told


def stop_and_go_on(
    folder: str, begin: Callable[[], Any] | None = None, case: str = "edge-popup", name: str = "edge-popup"
) -> dict[str, Any]:
    """One rank alone hears a signal: both stop after the same step, and go on as one run."""
    from ticket_search import Interrupted
    from ticket_search.training import loop

    rank, train_on, steps = int(os.environ["RANK"]), loop._Loop._train_on, list[int]()

    def train(self: Any, x: Any, y: Any) -> None:
        if self.step == 12 and rank == 1:
            self.run.stop(75)
        steps.append(self.step)
        train_on(self, x, y)

    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_train_on", train)
        # Where a step takes no time the search would be over before the ranks ask each other again.
        patch.setattr(ranks, "_MOST_STEPS", 8)
        try:
            begin() if begin else search_case(case, folder)
        except Interrupted as error:
            status = error.status
    stopped = Path(folder, name, "state.pt").exists()
    run = resume(f"{folder}/{name}", Dropping if case == "dropout" else None, progress=False)
    return {"status": status, "last": steps[-1], "saved": stopped, "masks": fingerprint(run.ticket.masks)}


def work(rank: int, folder: str, port: int, parts: list[tuple[str, Callable[..., Any], tuple[Any, ...]]]) -> None:
    """What one rank does: each part is a function and its arguments."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.save({name: part(*arguments) for name, part, arguments in parts}, f"{folder}/{rank}.pt")


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition gives when it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found
