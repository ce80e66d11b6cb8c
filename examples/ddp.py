"""Two processes train one masked model with DistributedDataParallel. Prune after wrapping: the weights are equal then.

Run: python examples/ddp.py          (it starts both processes itself)
"""

import tempfile

import torch
import torch.distributed as dist
from torch import nn

import supermask


def train(rank: int, folder: str) -> None:
    """What each process does, on data of its own."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    x = torch.randn(200, 20)
    net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))
    model = nn.parallel.DistributedDataParallel(net)  # the first process gives its weights to the other
    supermask.hold(model, supermask.prune(model, density=0.2, allocation="layerwise"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(50):
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    supermask.check(model)
    print(f"process {rank}: loss {loss:.3f} with {supermask.masks_of(model)}", flush=True)
    # No collective at the end: gloo's threads may still hold its tensors when the process ends, and abort it.
    torch.save(net.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (folder,), nprocs=2)
        first, second = (torch.load(f"{folder}/{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first), "the processes differ"
