"""fp32 is fp32 whatever the caller has asked of PyTorch, and devices without float64 are asked for none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from method_tests import FEW, tickets_of
from processes import run_python
from test_methods import METHODS, OWN_WAY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from supermask.masks.random_numbers import permutation
from ticket_search import RequestError, search
from ticket_search.data.sources import read_samples
from ticket_search.methods import find_method
from ticket_search.methods.dense import Config
from ticket_search.models.lenet import lenet_300_100
from ticket_search.runs import experiment
from ticket_search.training import evaluation

pytestmark = pytest.mark.quick

# Everything that PyTorch lets one say about products of fp32 numbers, by the older way and by the newer one.
ASKED = """
torch.set_float32_matmul_precision("high")
torch.set_float32_matmul_precision("medium")
B.cudnn.allow_tf32 = False
B.cuda.matmul.allow_tf32 = True
B.fp32_precision = "tf32"
B.mkldnn.matmul.fp32_precision = "bf16"
B.fp32_precision = "tf32"; B.cuda.matmul.fp32_precision = "ieee"
pass
""".strip().splitlines()

SCRIPT = """
import os, sys
import torch
from ticket_search.methods.dense import Config
from ticket_search.runs.experiment import exact_arithmetic

B = torch.backends

def state():
    if hasattr(B, "fp32_precision"):
        kinds = [B.cudnn.conv, B.cudnn.rnn, B.cuda.matmul, B.mkldnn, B.mkldnn.matmul, B.mkldnn.conv, B.mkldnn.rnn]
        return [place.fp32_precision for place in (B, B.cudnn, *kinds)]
    return [B.cudnn.allow_tf32, B.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()]

def check(asked):
    exec(asked)
    before = state()
    with exact_arithmetic(Config()):
        inside = state()
    assert state() == before, (asked, before, state())
    leaves = inside[2:5] + inside[6:] if len(inside) == 9 else inside
    assert not {"tf32", "bf16", "high", "medium", True} & set(leaves), (asked, inside)

for asked in sys.argv[1:]:
    if "fp32_precision" in asked and not hasattr(B, "fp32_precision"):
        continue
    child = os.fork()  # what has been asked cannot be taken back whole, and PyTorch is imported once
    if child == 0:
        try:
            check(asked)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, asked
print("all")
"""


def test_fp32_is_whole_and_what_was_asked_is_put_back(forkserver_with_torch):
    answer = run_python(SCRIPT, *ASKED)
    assert answer.stdout.splitlines()[-1:] == ["all"], answer.stdout + answer.stderr


class NoFloat64(TorchDispatchMode):
    """A device that has no float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, (tuple, list)) else [result]
        wide = [tensor for tensor in found if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64]
        if wide:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


@pytest.mark.parametrize(("kind", "refused"), [("mps", False), ("cpu", True)])
def test_evaluation_without_float64(kind, refused):
    data = read_samples("digits", None, 0)
    model: nn.Module = lenet_300_100([1, 8, 8], 10)
    expected = evaluation.evaluate(model, data, "validation")

    class Pretended:
        """The data, on a device that says it is of this kind."""

        device = SimpleNamespace(type=kind)

        input_shape = data.input_shape

        def batches(self, split, size):
            return data.batches(split, size)

    real = torch.zeros

    def zeros(*args, device=None, **flags):
        return real(*args, **flags)

    with pytest.MonkeyPatch.context() as patch, NoFloat64():
        patch.setattr(torch, "zeros", zeros)
        if refused:
            with pytest.raises(TypeError, match="float64"):
                evaluation.evaluate(model, Pretended(), "validation")
            return
        found = evaluation.evaluate(model, Pretended(), "validation")
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.value == pytest.approx(expected.value)


def test_a_mac_trains_on_the_cpu_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="trains on the CPU"):
        assert experiment.resolve(Config()).device == "cpu"
    assert experiment.resolve(Config(device="mps")).device == "mps"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OWN_WAY[:4] else [pytest.mark.slow]) for name in METHODS]
)
def test_every_method_searches_in_float64(name, tmp_path):
    """Weights, batches and sums are float64; the masks are nearly those of float32."""
    method = find_method(name)
    density = {} if method.traits.dense else {"density": 0.4}
    few = {key: value for key, value in FEW.items() if key in method.Config.model_fields}
    same = {
        "epochs": 2,
        "threads": 1,
        "train_size": 256,
        "progress": False,
        "model_args": "width=0.1",
        **density,
        **few,
    }
    run = search(name, precision="fp64", runs=tmp_path / "fp64", **same)
    ticket, *_ = tickets_of(run)
    final, start = ticket.state_dict("final"), ticket.state_dict("start")
    assert {tensor.dtype for tensor in final.values() if tensor.is_floating_point()} == {torch.float64}
    assert any(bool((tensor != tensor.float()).any()) for tensor in final.values()) == (
        method.traits.weights in ("trained", "computed")
    ), "drawn weights are float32's, whatever comes of them is not"
    usual = search(name, runs=tmp_path / "fp32", **same)
    usual_ticket, *_ = tickets_of(usual)
    assert ticket.masks.overlap(usual_ticket.masks) > 0.95
    for key, tensor in usual_ticket.state_dict("start").items():
        torch.testing.assert_close(start[key].to(tensor), tensor, rtol=0, atol=1e-6 if key in ticket.masks else 1)
    assert run.summary["val_loss"] == pytest.approx(usual.summary["val_loss"], rel=0.05)


def test_a_step_in_float64_is_that_of_a_loop(tmp_path):
    flags = {"epochs": 1, "train_size": 128, "batch_size": 128, "lr": 0.1, "threads": 1, "progress": False}
    run = search("dense", precision="fp64", optimizer="sgd", momentum=0.0, runs=tmp_path, **flags)
    net = run.setup.build()
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    net.load_state_dict(run.ticket.state_dict("start"))
    ((x, y),) = run.data.train_batches(permutation(128, 0, "order/0/0"), 128)
    nn.functional.cross_entropy(net(x), y).backward()
    for name, parameter in net.named_parameters():
        stepped = (parameter - 0.1 * parameter.grad).detach()
        torch.testing.assert_close(run.ticket.state_dict("final")[name], stepped, rtol=1e-12, atol=1e-14)


def test_where_there_is_no_float64(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(RequestError, match="--precision fp64: Apple's GPUs have no float64"):
        search("dense", precision="fp64", device="mps", runs=tmp_path, progress=False)
