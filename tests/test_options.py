"""Arithmetic, objectives, checkpoints and networks of one's own."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from products import combine
from torch import nn

import supermask
from supermask.live.held import mask_gradients
from ticket_search import RequestError, search
from ticket_search.contract.flags import make_config
from ticket_search.methods import find_method
from ticket_search.models.lenet import lenet_300_100
from ticket_search.runs.experiment import bf16_is_native, resolve
from ticket_search.training.objective import Objective
from ticket_search.training.precision import Arithmetic


def resolved(**flags):
    return resolve(make_config(find_method("dense").Config, {"method": "dense", **flags}))


def test_precision_is_stored_resolved(quick):
    assert resolved().precision == "fp32"
    assert resolved().channels_last is False
    assert resolved(precision="auto").precision == ("bf16" if bf16_is_native("cpu") else "fp32")
    assert resolved(precision="bf16").channels_last is True
    assert resolved(precision="bf16", channels_last=False).channels_last is False
    run = quick("edge-popup", epochs=1, precision="bf16", model="conv2", model_args="width=0.1", density=0.5)
    assert run.config.precision == "bf16"
    assert run.config.channels_last is True
    supermask.load(run.path / "ticket.safetensors").model()


def test_bf16_runs_the_forward_pass_and_keeps_weights_in_fp32(quick):
    arithmetic = Arithmetic("cpu", bf16=True)
    model = nn.Linear(4, 4)
    with arithmetic.forward():
        assert model(torch.ones(1, 4)).dtype == torch.bfloat16
    exact, rough = quick("dense"), quick("dense", precision="bf16")
    assert rough.ticket.state_dict()["fc1.weight"].dtype == torch.float32
    assert exact.ticket != rough.ticket
    assert abs(exact.summary["test_accuracy"] - rough.summary["test_accuracy"]) < 4


def test_channels_last_changes_the_layout_and_not_the_result(quick):
    x = torch.randn(2, 3, 4, 5)
    assert Arithmetic(channels_last=True).lay_out(x).is_contiguous(memory_format=torch.channels_last)
    assert Arithmetic(channels_last=True).lay_out(x[:, 0]) is not None
    flags = {"model": "conv2", "model_args": "width=0.2", "epochs": 1, "density": 0.5}
    for method, more in (("imp", {"fraction": 0.5}), ("edge-popup", {})):
        plain, other = quick(method, **flags, **more), quick(method, **flags, **more, channels_last=True)
        # Sums run in another order, so a few weights at the edge may change places; the masks are still masks.
        assert plain.ticket.masks.kept == other.ticket.masks.kept
        assert plain.ticket.masks.overlap(other.ticket.masks) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "imp", "edge-popup"])
def test_compiled_training_finds_about_the_same(method, quick):
    flags = {} if method == "dense" else {"density": 0.5}
    plain, fast = quick(method, **flags), quick(method, compile=True, **flags)
    assert abs(plain.summary["test_accuracy"] - fast.summary["test_accuracy"]) < 3
    assert fast.ticket.masks.overlap(plain.ticket.masks) > 0.9
    assert list(fast.ticket.state_dict()) == list(plain.ticket.state_dict())


def test_compile_without_a_compiler_says_which(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RequestError, match=r"--compile needs a C\+\+ compiler, and g\+\+ is not on the PATH"):
        resolved(compile=True)


def test_label_smoothing_trains_and_does_not_measure():
    logits, y = torch.randn(8, 5), torch.randint(0, 5, (8,))
    smooth = Objective(label_smoothing=0.2)
    spread = torch.full((8, 5), 0.2 / 5).scatter_(1, y[:, None], 0.8 + 0.2 / 5)
    expected = -(spread * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smooth.training_loss(logits, y), expected)
    torch.testing.assert_close(smooth.loss(logits, y), nn.functional.cross_entropy(logits, y))


def test_parts_of_a_batch_give_the_gradient_of_the_whole(quick):
    whole, parts = quick("dense"), quick("dense", accumulate=7)
    for name, tensor in whole.ticket.state_dict().items():
        torch.testing.assert_close(parts.ticket.state_dict()[name], tensor, rtol=1e-2, atol=1e-3)
    rows = [[row["loss/train"] for row in run.metrics if "loss/train" in row] for run in (whole, parts)]
    assert np.allclose(*rows, rtol=1e-3)


def test_clipping_counts_kept_weights_only(quick):
    model = nn.Linear(6, 6, bias=False)
    masks = supermask.prune(model, 0.5)
    supermask.hold(model, masks)
    model(torch.randn(4, 6)).sum().backward()
    mask_gradients(model)
    assert not model.weight.grad[~masks["weight"]].any()
    assert model.weight.grad[masks["weight"]].any()
    free, clipped = quick("dense", optimizer="sgd", lr=0.01), quick("dense", optimizer="sgd", lr=0.01, clip=1e-6)
    start = free.ticket.state_dict("start")["fc1.weight"]
    moved = [(run.ticket.state_dict()["fc1.weight"] - start).norm() for run in (free, clipped)]
    assert moved[1] < 1e-4 < moved[0]


def test_augmentation_changes_training_only(quick):
    flags = {"model": "conv2", "model_args": "width=0.1", "epochs": 1}
    plain, other = quick("dense", **flags), quick("dense", **flags, crop=1, flip=True)
    assert plain.ticket.states["start"].fingerprint == other.ticket.states["start"].fingerprint
    assert plain.ticket != other.ticket


@combine(suffix=[".pt", ".safetensors"], wrapped=[True, False])
def test_a_search_starts_from_a_checkpoint(suffix, wrapped, quick, tmp_path):
    model = lenet_300_100((1, 8, 8), 10)
    state = {("module." if wrapped else "") + name: tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    else:
        safetensors.torch.save_file(state, path)
    run = quick("imp", weights=str(path), density=0.5, fraction=0.5, epochs=1)
    start = run.load_level(0).state_dict("start")
    assert all(torch.equal(start[name], tensor) for name, tensor in model.state_dict().items())
    untrained = quick("edge-popup", weights=str(path), density=0.5, epochs=1)
    mask = untrained.ticket.masks["fc1.weight"]
    assert torch.equal(untrained.ticket.state_dict()["fc1.weight"], torch.where(mask, model.fc1.weight.detach(), 0.0))
    assert "weights" not in run.ticket.meta["config"], "a path of this machine"


def test_one_of_several_state_dicts_is_chosen_by_its_key(quick, tmp_path):
    model = lenet_300_100((1, 8, 8), 10)
    average = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    path = tmp_path / "net.pt"
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": average}, path)
    with pytest.raises(RequestError, match=r"several state dicts, .*state_dict_ema .*; as --weights '.*net.pt#KEY'"):
        quick("dense", weights=str(path))
    start = quick("dense", weights=f"{path}#state_dict_ema").ticket.state_dict("start")
    assert all(torch.equal(start[name], tensor) for name, tensor in average.items())
    with pytest.raises(RequestError, match=r"no state dict 'ema'.*state_dict_ema \(6 tensors\)"):
        quick("dense", weights=f"{path}#ema")


def test_a_checkpoint_that_does_not_fit_is_told_tensor_by_tensor(quick, tmp_path):
    state = lenet_300_100((1, 8, 8), 10).state_dict()
    state["fc2.weight"] = torch.zeros(100, 299)
    state["fc3.wieght"] = state.pop("fc3.weight")
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(RequestError) as caught:
        quick("dense", weights=str(tmp_path / "net.pt"))
    assert len(caught.value.problems) == 3
    text = str(caught.value)
    assert "fc2.weight has shape [100, 299], the model's [100, 300]" in text
    assert "fc3.weight [10, 100] is missing; did you mean 'fc3.wieght'?" in text
    assert "fc3.wieght [10, 100] is not in the model" in text
    others = {f"block.{number}": torch.zeros(2) for number in range(300)}
    torch.save(others, tmp_path / "others.pt")
    with pytest.raises(RequestError) as caught:
        quick("dense", weights=str(tmp_path / "others.pt"))
    assert [problem.endswith("is missing") for problem in caught.value.problems].count(True) == 5
    assert [problem.endswith("is not in the model") for problem in caught.value.problems].count(True) == 5
    last = (
        "--weights others.pt: of the 6 tensors of the model and 300 of the file 6 are missing, 300 are not in the model"
    )
    assert caught.value.problems[-1] == last and len(caught.value.problems) == 11
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, problem in {
        "text.pt": "cannot be read",
        "list.pt": "holds no state dict",
        "none.pt": "cannot be read",
    }.items():
        with pytest.raises(RequestError, match=problem):
            quick("dense", weights=str(tmp_path / name))
    with pytest.raises(RequestError, match="--init kaiming-normal would draw over it"):
        quick("dense", weights=str(tmp_path / "net.pt"), init="kaiming-normal")
    assert not (tmp_path / "runs").exists()


PACKAGE = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x):
        return self.layers(x)

def make_net(hidden=16):
    return Net(hidden)

def make_data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 5)).astype("float32")
    return x, (x @ generator.normal(size=(5, 3))).argmax(1)

class Set(torch.utils.data.Dataset):
    def __init__(self):
        self.x, self.y = make_data()
    def __len__(self):
        return len(self.y)
    def __getitem__(self, i):
        return self.x[i], self.y[i]

def make_dataset():
    return Set()

def hinge(outputs, targets):
    return nn.functional.multi_margin_loss(outputs, targets)

def top2(outputs, targets):
    return (outputs.topk(2).indices == targets[:, None]).any(1).float()

def broken():
    raise RuntimeError("no such disk")

def few():
    return nn.Linear(5, 2)

number = 3
"""


@pytest.fixture
def scratch(ticket, tmp_path, monkeypatch):
    """`ticket` in a folder with a package of one's own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "things.py").write_text(textwrap.dedent(PACKAGE))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield ticket
    for name in ("mine", "mine.things"):
        sys.modules.pop(name, None)


def test_ones_own_model_and_data_from_the_shell_to_a_ticket_and_back(scratch, tmp_path):
    words = [
        "--model",
        "mine.things:make_net",
        "--model-args",
        "hidden=20",
        "--epochs",
        "8",
        "--batch-size",
        "20",
        "--lr",
        "0.01",
    ]
    for data in ("mine.things:make_data", "mine.things:make_dataset"):
        done = scratch(
            "search",
            "--method",
            "imp",
            *words,
            "--data",
            data,
            "--density",
            "0.5",
            "--fraction",
            "0.5",
            "--json",
            "--name",
            data[-4:],
        )
        assert done.code == 0, done.err
        summary = json.loads(done.out)
        assert summary["test_accuracy"] > 60
        assert summary["model"] == "mine.things:make_net"
        assert summary["weights"] == 5 * 20 + 20 * 3
    ticket = supermask.load(tmp_path / "runs" / "data" / "ticket.safetensors")
    with pytest.raises(ValueError, match="not known here by name"):
        ticket.model()
    net = nn.Module()
    net.layers = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 3))
    ticket.apply_to(net)
    (tmp_path / "sent.safetensors").write_bytes((tmp_path / "runs" / "data" / "ticket.safetensors").read_bytes())
    refused = scratch("train", "sent.safetensors", "--seed", "3")
    assert refused.code == 2
    assert "names code that would be imported: model mine.things:make_net, data mine.things:make_data" in refused.err
    own = ["--model", "mine.things:make_net", "--data", "mine.things:make_data"]
    again = scratch("train", "runs/data", *own, "--seed", "3", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["test_accuracy"] > 60


def test_a_loss_and_a_metric_of_ones_own(scratch):
    words = [
        "search",
        "--method",
        "dense",
        "--epochs",
        "2",
        "--loss",
        "mine.things:hinge",
        "--metric",
        "mine.things:top2",
        "--json",
    ]
    done = scratch(*words)
    assert done.code == 0, done.err
    plain = json.loads(scratch(*words[:5], "--json").out)
    own = json.loads(done.out)
    assert own["metric"] == {"name": "top2", "direction": "higher", "unit": ""}
    assert 100 * own["test_metric"] > plain["test_accuracy"] == plain["test_metric"], "the right class is among two"
    assert "test_accuracy" not in own and plain["metric"] == {"name": "accuracy", "direction": "higher", "unit": "%"}
    assert own["val_loss"] != plain["val_loss"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--model", "mine.things:make_nte"], "did you mean 'make_net'"),
        (["--model", "mine.thing:make_net"], "mine.thing"),
        (["--model", "mine.things:number"], "expected a function"),
        (["--model", "mine.things:make_data", "--data", "mine.things:make_data"], "gave tuple, expected a torch.nn.Module"),
        (["--model", "mine.things:broken"], "RuntimeError: no such disk"),
        (["--data", "mine.things:broken"], "RuntimeError: no such disk"),
        (["--data", "mine.things:make_net"], "is Net, expected (x, y)"),
        (["--model", "mine.things:few", "--data", "mine.things:make_data"], "gives 2 numbers per sample, mine.things:make_data has 3 classes"),
        (["--model-args", "depth=3"], "does not take depth; it takes input_shape, classes, activation, width"),
        (["--model-args", "width"], "--model-args width: expected NAME=VALUE"),
        (["--model", "conv2", "--data", "mine.things:make_data"], "cannot be built"),
        (["--model", "torchvision:resnet18"], "takes images of 3 channels"),
        (["--model", "torchvision:resnet81"], "did you mean 'resnet18'"),
        (["--loss", "mine.things:hing"], "did you mean 'hinge'"),
        (["--metric", "nonsense"], "expected accuracy, r2, perplexity, mse, mae or package.module:function"),
        (["--metric", "perplexty"], "did you mean 'perplexity'"),
        (["--loss", "cross-entrpy"], "did you mean 'cross-entropy'"),
        (["--loss", "mse"], "the network lenet-300-100, in evaluation mode: the network gives numbers of shape [2, 10] for targets of shape [2], expected one for each"),
        (["--metric", "r2"], "with the loss cross-entropy expected accuracy, perplexity"),
        (["--loss", "model"], "outputs have no loss of their own"),
        (["--activation", "rleu"], "--activation rleu: expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_exits_2_and_writes_nothing(words, problem, scratch, tmp_path):
    done = scratch("search", *words)
    assert done.code == 2, done.err
    assert problem in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


def test_a_dataset_in_python(tmp_path):
    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 200

        def __getitem__(self, i):
            x = torch.randn(6, generator=torch.Generator().manual_seed(i))
            return x, int(x.sum() > 0)

    run = search(
        "dense", lambda: nn.Linear(6, 2), Squares(), runs=tmp_path, progress=False, epochs=30, batch_size=10, lr=0.02
    )
    assert run.summary["test_accuracy"] > 80
    assert Path(run.path).exists()


def test_a_torchvision_ticket_is_rebuilt_and_evaluated_by_name(tmp_path, monkeypatch):
    from test_data_formats import write_cifar10_binary

    from ticket_search.training.evaluation import evaluate_ticket

    write_cifar10_binary(tmp_path)
    flags = {"data": "cifar10", "data_dir": str(tmp_path), "epochs": 1, "batch_size": 2, "threads": 1, "density": 0.5}
    run = search("edge-popup", "torchvision:squeezenet1_1", runs=tmp_path / "runs", progress=False, **flags)
    assert isinstance(run.ticket.model(), nn.Module)
    assert evaluate_ticket(run.ticket, "cifar10", str(tmp_path))["test_accuracy"] == run.summary["test_accuracy"]
