"""Every learned mask in two processes of DistributedDataParallel, beside one process on the joined batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from rules import RULES, learn
from test_learned_checkpointing import Net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import supermask

RANKS = 2


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


NETWORKS = {"perceptron": perceptron, "checkpointed": lambda: Net("several")}
CASES = [("perceptron", rule) for rule in RULES] + [("checkpointed", rule) for rule in ("edge-popup", "bernoulli")]


def train(network: str, rule: str, rank: int | None = None) -> dict[str, Any]:
    """Three steps, on every second sample of each batch or on all of them; what is left, and what is seen of it."""
    torch.manual_seed(0)
    model = NETWORKS[network]().double()
    learn(model, rule)
    # Of the tasks only the one in use learns.
    run = model if rank is None else DistributedDataParallel(model, find_unused_parameters=rule == "tasks")
    part = slice(None) if rank is None else slice(rank, None, RANKS)
    optimizer = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], 0.5, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x, y = torch.randn(8, 8, generator=generator).double(), torch.randint(0, 4, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(x[part]), y[part]).backward()
        optimizer.step()
        supermask.check(run)
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "masks": dict(supermask.masks_of(run)),
        "baked": supermask.bake(run).eval()(x).detach(),
        "evaluated": run.eval()(x).detach(),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    torch.save({case: train(*case, rank) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, forkserver_with_torch) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize(("network", "rule"), CASES)
def test_replicas_equal_one_process_on_the_joined_batch(network, rule, ranks):
    alone = train(network, rule)
    for found in (rank[network, rule] for rank in ranks):
        torch.testing.assert_close(found["state"], alone["state"], rtol=1e-9, atol=1e-12)
        assert supermask.Masks(found["masks"]) == supermask.Masks(alone["masks"])
        torch.testing.assert_close(found["baked"], found["evaluated"])
        torch.testing.assert_close(found["evaluated"], alone["evaluated"])
