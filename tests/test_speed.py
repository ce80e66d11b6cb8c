"""What makes runs fast changes nothing in them: one test for each short cut, against what it stands in for."""

from __future__ import annotations

import math

import pytest
import torch
from processes import run_python
from products import combine, thin
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from supermask.weights.architectures import find_architecture
from ticket_search.contract.flags import make_config
from ticket_search.contract.leave import leave_here
from ticket_search.data.sources import read_samples
from ticket_search.methods.dense import Config
from ticket_search.models.names import model_names
from ticket_search.training import loop as training
from ticket_search.training.flops import forward_flops
from ticket_search.training.objective import Objective, make_objective
from ticket_search.training.optimization import make_optimizer
from ticket_search.training.running_mean import Tally


class Recorder(TorchDispatchMode):
    """All operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.add(func)
        return func(*args, **(kwargs or {}))


# More steps than are summed on the device, and a level after the dense network.
SEVERAL = {"batch_size": 4, "train_size": 264, "epochs": 1, "model_args": "width=0.1"}


@combine(method=["dense", "imp", "edge-popup"], flags=[{"accumulate": 2, "clip": 1.0, "label_smoothing": 0.1}, {}])
def test_no_step_asks_for_a_number(method, flags, quick, monkeypatch):
    """A number that Python reads is a wait for the device: none between two evaluations."""
    recorders = []
    step = training._Loop._train_on

    def recorded(loop, x, y):
        with Recorder() as recorder:
            step(loop, x, y)
        recorders.append(recorder)

    monkeypatch.setattr(training._Loop, "_train_on", recorded)
    levels = {"fraction": 0.5} if method == "imp" else {}
    quick(method, density=1.0 if method == "dense" else 0.5, **SEVERAL, **levels, **flags)
    names = {str(function) for recorder in recorders for function in recorder.called}
    assert any("addmm" in name for name in names)
    assert not [name for name in names if "_local_scalar_dense" in name]
    assert len(recorders) > Tally.STEPS


@pytest.mark.skipif(torch.__version__ < "2.8", reason="einops imports the compiler of an older PyTorch itself")
def test_the_search_imports_no_compiler(tmp_path, forkserver_with_torch):
    """`torch._dynamo` takes as long to import as all of PyTorch, scikit-learn and pandas longer than to search."""
    code = (
        "import sys; from ticket_search import search; from ticket_search.runs import first_layer\n"
        "from ticket_search.runs.loggers import tensorboard\n"
        "for method, density in {'edge-popup': 0.5, 'filters': 0.5, 'imp': 0.9}.items():\n"
        f"    run = search(method, runs={str(tmp_path)!r}, density=density, epochs=1, train_size=128, threads=1, "
        "progress=False)\n"
        "    if method == 'filters':\n"
        "        import supermask, torch\n"
        "        supermask.shrink(run.ticket.model(), run.ticket.masks, torch.zeros(2, 1, 8, 8))\n"
        "    tensorboard.draw = first_layer.draw\n"
        "print([name for name in ('torch._dynamo', 'sklearn', 'pandas', 'sympy', 'torch.utils.tensorboard')"
        " if name in sys.modules])"
    )
    assert run_python(code) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("name", "kind", "flags"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
    ],
)
def test_optimizers_are_those_of_pytorch(name, kind, flags):
    config = make_config(Config, {"optimizer": name, "lr": 0.1, "weight_decay": 0.01, **flags})
    models = []
    for make in (
        lambda model: make_optimizer(model, config),
        lambda model: kind(model.parameters(), lr=0.1, weight_decay=0.01, fused=True, **flags),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        optimizer = make(model)
        assert isinstance(optimizer, kind)
        called = []
        optimizer.register_step_post_hook(lambda *_, called=called: called.append(1))
        for step in range(4):
            optimizer.zero_grad()
            model(torch.ones(3, 8)).square().sum().backward()
            optimizer.step()
            if step == 1:
                state = optimizer.state_dict()
                optimizer = make(model)
                optimizer.load_state_dict(state)
                optimizer.register_step_post_hook(lambda *_, called=called: called.append(1))
        assert len(called) == 4
        assert all(parameter.requires_grad for parameter in model.parameters())
        models.append([*model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*models, strict=True))


@pytest.mark.parametrize("name", thin(model_names(), 2))
def test_operations_are_counted_as_pytorch_counts_them(name, small_mnist1d):
    data = read_samples({"mnist1d-mlp": "mnist1d", "gpt-tiny": "python-text"}.get(name, "digits"), None, 0)
    model = find_architecture(name)(data.input_shape, data.classes).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(data.test_x[:1])
    assert forward_flops(model, data) == counter.get_total_flops() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("numbers", [Tally.NUMBERS, 300])
def test_a_tally_is_the_sum_over_steps(numbers, smoothing, monkeypatch):
    monkeypatch.setattr(Tally, "NUMBERS", numbers)
    objective = Objective(label_smoothing=smoothing)
    generator = torch.Generator().manual_seed(0)
    tally, loss, score = Tally(objective, torch.device("cpu")), 0.0, 0.0
    for step in range(150):
        share = 0.5 if step % 3 else 1.0
        outputs = torch.randn(6, 5, generator=generator)
        targets = torch.randint(5, (6,), generator=generator)
        tally.add(objective.training_loss(outputs, targets), outputs, targets, share)
        loss += objective.loss(outputs, targets).item() * share
        score += (outputs.argmax(1) == targets).sum().item()
        if step == 100:
            # As a stopped run that goes on: nothing is summed early, so nothing is rounded otherwise.
            again = Tally(objective, torch.device("cpu"))
            again.load_state_dict(tally.state_dict())
            tally = again
    found = tally.read()
    assert found == (pytest.approx(loss, rel=1e-5), 100.0 * score / (150 * 6))
    begun = tally.read()
    assert begun[0] == 0 and math.isnan(begun[1]), "nothing has been measured"


def test_a_tally_takes_losses_with_an_axis_and_outputs_of_several_shapes():
    tally = Tally(Objective(), torch.device("cpu"))
    for width in (3, 5, 3):
        tally.add(torch.tensor([2.0]), torch.eye(width)[:2], torch.tensor([0, 0]), 1.0)
    assert tally.read() == (6.0, 100 * 3.0 / 6)


def test_a_tally_scores_by_the_configured_metric():
    name = f"{__name__}:is_first"
    config = make_config(Config, {"metric": name}).allowing(leave_here(name))
    tally = Tally(make_objective(config), torch.device("cpu"))
    for _ in range(70):
        tally.add(torch.tensor(1.0), torch.zeros(4, 3), torch.tensor([0, 0, 0, 1]), 1.0)
    assert tally.read() == (70.0, 210.0 / 280)


def is_first(outputs, targets):
    return (targets == 0).float()
