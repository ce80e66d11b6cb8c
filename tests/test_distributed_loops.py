"""Masks in two processes: DistributedDataParallel and sharded parameters, beside one process and float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from held import batches, zero
from networks import perceptron
from processes import run_ranks
from rules import RULES, learn
from test_learned_checkpointing import Net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import supermask
from ticket_search.training.shards import WORKS_ON_A_CPU as SHARDS

RANKS = 2


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return perceptron().double()


def train(model: nn.Module, rank: int | None = None, after_step=lambda: None) -> None:
    """Three steps of AdamW: on every second sample of each batch, or on all of them."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    for x, y in batches(3):
        part = slice(None) if rank is None else slice(rank, None, RANKS)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part].double()), y[part]).backward()
        optimizer.step()
        after_step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of the plain model, whole."""
    found = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    return {
        name: getattr(tensor, "full_tensor", lambda t=tensor: t)().detach().clone() for name, tensor in found.items()
    }


def message_of(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no ValueError"


def shard(model: nn.Module, parts: bool) -> nn.Module:
    from torch.distributed.fsdp import fully_shard  # only where it is used: it takes as long to import as PyTorch

    mesh = dist.init_device_mesh("cpu", (RANKS,))
    for layer in model if parts else ():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def replicated(rank: int) -> dict[str, Any]:
    """Held before it is wrapped; then a copy drawn with another seed in each process, wrapped before it is pruned."""
    model = make()
    masks = supermask.prune(model, 0.4)
    supermask.hold(model, masks)
    wrapped = DistributedDataParallel(model)
    train(wrapped, rank, lambda: supermask.check(wrapped))
    late = DistributedDataParallel(make(seed=rank))
    supermask.hold(late, supermask.prune(late, 0.4))
    train(late, rank, lambda: supermask.check(late))
    return {
        "masks": dict(masks),
        "weights": weights(wrapped),
        "late masks": dict(supermask.masks_of(late)),
        "late weights": weights(late),
        "revived": revived(wrapped, model[0].weight, masks["0.weight"]),
    }


@torch.no_grad()
def revived(model: nn.Module, weight: torch.Tensor, mask: torch.Tensor) -> str:
    weight[tuple((~mask).nonzero()[:2].T)] = 1.0
    return message_of(lambda: supermask.check(model))


def sharded(rank: int) -> dict[str, Any]:
    """Masks put on before and after the parameters are sharded, layer by layer or as one."""
    found = {}
    for order in ("before", "after") if SHARDS else ():
        for parts in (True, False):
            model = make()
            masks = supermask.prune(model, 0.4)
            if order == "before":
                supermask.hold(model, masks)
            shard(model, parts)
            if order == "after":
                supermask.hold(model, masks)
            train(model, rank, lambda model=model: supermask.check(model))
            x = batches(1)[0][0].double()
            expected = model(x).detach()
            model.reshard()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 2:
                        parameter.to_local()[~local_part(masks, model, parameter, rank)] = 1.0
            message = message_of(lambda model=model: supermask.check(model))
            seen = model(x).detach()
            found[f"{order}, parts={parts}"] = {
                "masks": dict(masks),
                "weights": weights_after_saving(model),
                "message": message,
                "unseen": torch.equal(seen, expected),
            }
    return found


def local_part(masks, model: nn.Module, parameter: nn.Parameter, rank: int) -> torch.Tensor:
    name = next(name for name, other in model.named_parameters() if other is parameter)
    parts = masks[name].chunk(RANKS)
    return parts[rank] if rank < len(parts) else masks[name][:0]


def weights_after_saving(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


def flattened(rank: int) -> dict[str, str]:
    """FSDP1 flattens parameters: no mask fits them."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = {}
    for original in (True, False):
        for order in ("before", "after"):
            model = make()
            masks = supermask.prune(model, 0.4)

            def run(model=model, masks=masks, original=original, order=order):
                if order == "before":
                    supermask.hold(model, masks)
                wrapped = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
                if order == "after":
                    supermask.hold(wrapped, masks)
                train(wrapped, rank)

            found[f"{order}, use_orig_params={original}"] = message_of(run)
    return found


def learned_in_shards(rank: int) -> dict[str, str]:
    """Masks learned before and after parameters are shared out, layer by layer or as one."""
    found = {}
    for rule, order, parts in SHARED if SHARDS else ():
        model = small_perceptron()

        def run(model=model, rule=rule, order=order, parts=parts):
            if order == "before":
                learn(model, rule)
            shard(model, parts)
            if order == "after":
                learn(model, rule)
            model(torch.randn(4, 8)).sum().backward()

        found[rule, order, parts] = message_of(run)
    return found


def small_perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


NETWORKS = {"perceptron": small_perceptron, "checkpointed": lambda: Net("several")}
SHARED = [(rule, order, parts) for rule in RULES for order in ("before", "after") for parts in (True, False)]
CASES = [("perceptron", rule) for rule in RULES] + [("checkpointed", rule) for rule in ("edge-popup", "bernoulli")]


def train_learned(network: str, rule: str, rank: int | None = None) -> dict[str, Any]:
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


def learned(rank: int) -> dict[Any, Any]:
    return {case: train_learned(*case, rank) for case in CASES}


def work(rank: int, folder: str, *parts: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    torch.save({part.__name__: part(rank) for part in parts}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run(folder: Path, *parts: Callable[[int], Any]) -> list[dict[str, Any]]:
    """What each rank finds."""
    run_ranks(work, str(folder), *parts, ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, forkserver_with_torch) -> list[dict[str, Any]]:
    return run(tmp_path_factory.mktemp("ranks"), sharded, flattened, learned, learned_in_shards)


@pytest.fixture
def alone() -> nn.Module:
    """One process on the joined batches, zeroed by hand."""
    model = make()
    masks = supermask.prune(model, 0.4)
    zero(model, masks)
    train(model, after_step=lambda: zero(model, masks))
    return model


def assert_dropped(weights: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> None:
    for name, mask in masks.items():
        assert not weights[name][~mask].view(torch.int64).any()
        assert weights[name][mask].any()


@pytest.mark.slow
def test_replicas_equal_one_process_on_the_joined_batch(alone, tmp_path, forkserver_with_torch):
    ranks = run(tmp_path, replicated)
    for found in (rank["replicated"] for rank in ranks):
        assert_dropped(found["weights"], found["masks"])
        torch.testing.assert_close(found["weights"], dict(alone.named_parameters()), rtol=1e-9, atol=1e-12)
        assert "0.weight has 2 of" in found["revived"]
        assert_dropped(found["late weights"], found["late masks"])
        for key in ("weights", "late masks", "late weights"):
            for name, tensor in found[key].items():
                assert torch.equal(tensor, ranks[0]["replicated"][key][name])


@pytest.mark.skipif(not SHARDS, reason="a PyTorch whose fully_shard does not work on a CPU")
@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("order", ["before", "after"])
def test_shards_equal_one_process_on_the_joined_batch(order, parts, ranks, alone):
    for found in (rank["sharded"][f"{order}, parts={parts}"] for rank in ranks):
        assert "dropped weights different from 0" in found["message"]
        assert found["unseen"], "what was written by hand into a shard was read"
        assert_dropped(found["weights"], found["masks"])
        torch.testing.assert_close(found["weights"], dict(alone.named_parameters()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("order", ["before", "after"])
def test_flattened_parameters_are_refused(order, original, ranks):
    expected = "has a mask of shape" if order == "before" else "the masks do not fit the model"
    for rank in ranks:
        assert expected in rank["flattened"][f"{order}, use_orig_params={original}"]


@pytest.mark.skipif(not SHARDS, reason="a PyTorch whose fully_shard does not work on a CPU")
@pytest.mark.parametrize(("rule", "order", "parts"), SHARED)
def test_masks_are_not_learned_in_shards(rule, order, parts, ranks):
    for rank in ranks:
        told = rank["learned_in_shards"][rule, order, parts]
        if rule == "patterns" and order == "before":
            assert told.startswith("fully_shard doesn't support scalar parameters")
            continue
        assert told.startswith("masks cannot be learned where parameters are shared out over processes (fully_shard)")


@pytest.mark.parametrize(("network", "rule"), CASES)
def test_replicas_of_learned_masks_equal_one_process_on_the_joined_batch(network, rule, ranks):
    alone = train_learned(network, rule)
    for found in (rank["learned"][network, rule] for rank in ranks):
        torch.testing.assert_close(found["state"], alone["state"], rtol=1e-9, atol=1e-12)
        assert supermask.Masks(found["masks"]) == supermask.Masks(alone["masks"])
        torch.testing.assert_close(found["baked"], found["evaluated"])
        torch.testing.assert_close(found["evaluated"], alone["evaluated"])
