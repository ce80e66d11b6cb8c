"""A model with masks under what records its passes: the numbers are right, or it is told to bake first."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from products import combine
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.fx.experimental.proxy_tensor import make_fx

import supermask


class Own(nn.Module):
    """A network with a weight of its own, which no hook of a layer guards."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.randn(6, 20)), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(nn.functional.linear(x, self.weight)))


# Where PyTorch does not tell that it exports, in the strict way of 2.6, it has a refusal of its own.
UNTOLD = "Cannot export model which references tensors" if not hasattr(torch.compiler, "is_exporting") else "(?!)"

NETWORKS = {
    "layers": lambda: nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3)),
    "one layer": lambda: nn.Linear(20, 3),
    "its own weight": Own,
}


def saved(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def exported(model: nn.Module, x: torch.Tensor, strict: bool) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), strict=strict), file)
    file.seek(0)
    return torch.export.load(file).module()


def to_onnx(model: nn.Module, x: torch.Tensor, dynamo: bool):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    if dynamo:
        torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(model, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


TRACERS = {
    "torch.export": lambda model, x: exported(model, x, False),
    "torch.export, strict": lambda model, x: exported(model, x, True),
    "torch.jit.trace": lambda model, x: saved(torch.jit.trace(model, (x,))),
    "torch.jit.script": lambda model, x: saved(torch.jit.script(model)),
    "torch.fx": lambda model, x: torch.fx.symbolic_trace(model),
    "make_fx": lambda model, x: make_fx(model)(x),
    "quantization": lambda model, x: quantize_dynamic(model, {nn.Linear}),
    "torch.compile": lambda model, x: torch.compile(model, backend="aot_eager"),
    "onnx": lambda model, x: to_onnx(model, x, False),
    "onnx by export": lambda model, x: to_onnx(model, x, True),
}
# What records a held model as it is. Nothing but compilation does so with masks that are learned.
RECORDED = {"torch.jit.trace", "torch.fx", "make_fx", "quantization", "torch.compile", "onnx"}


@combine(how=["hold", "learn"], tracer=[name for name in TRACERS if "onnx" not in name], network=NETWORKS)
def test_what_is_recorded_has_the_masks_or_is_refused(how, network, tracer):
    check_what_is_recorded(how, network, tracer)


@pytest.mark.parametrize("tracer", ["onnx", pytest.param("onnx by export", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["hold", pytest.param("learn", marks=pytest.mark.slow)])
def test_what_goes_by_these_tracers_has_the_masks_or_is_refused(how, tracer):
    check_what_is_recorded(how, "layers", tracer)


def check_what_is_recorded(how: str, network: str, tracer: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = NETWORKS[network]().eval(), torch.randn(2, 4, 20)
    if how == "hold":
        supermask.hold(model, supermask.prune(model, 0.3, include="*weight", allocation="layerwise"))
    else:
        supermask.learn(model, 0.3, include="*weight")
    with torch.no_grad():
        if how == "hold":
            next(model.parameters()).add_(1.0)  # written by hand: masked at the next pass, and in what records it
        if tracer == "quantization":
            model(x)  # it reads the weights themselves
        expected = supermask.bake(model)(y)
    loose = 0.1 * float(expected.abs().max()) if tracer == "quantization" else 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if tracer == "torch.compile" or (how == "hold" and tracer in RECORDED):
            torch.testing.assert_close(TRACERS[tracer](model, x)(y), expected, rtol=0, atol=loose)
        elif tracer != "quantization" or network != "one layer":
            with pytest.raises(Exception, match=r"supermask.bake\(model\) first|" + UNTOLD):
                TRACERS[tracer](model, x)(y)
        torch.compiler.reset()  # PyTorch 2.6 would go on with what it has refused
        baked = TRACERS[tracer](supermask.bake(model), x)
        torch.testing.assert_close(baked(y), expected, rtol=0, atol=loose)
    torch.testing.assert_close(model(y), expected)
    supermask.check(model)


def test_a_part_is_refused_as_the_whole_is():
    model = nn.Sequential(nn.Sequential(nn.Linear(20, 5)), nn.Linear(5, 3))
    supermask.hold(model, supermask.prune(model, 0.3))
    x = torch.randn(2, 20)
    for call in (lambda: torch.export.export(model[0], (x,)), lambda: torch.jit.script(model[0])):
        told = r"cannot take a model with masks on it: supermask.bake\(model\) first|"
        with pytest.raises(RuntimeError, match=told + UNTOLD):
            call()
    torch.jit.script(nn.Sequential(nn.Linear(2, 2), supermask.bake(model[0])))
    with pytest.raises(RuntimeError, match=r"supermask.bake\(model\) first"):
        torch.jit.script(nn.Sequential(nn.Linear(2, 20), model))
    supermask.detach(model)
    torch.compiler.reset()
    assert not {"__prepare_scriptable__", "_get_name"} & model.__dict__.keys()
    torch.jit.script(model)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_a_model_with_masks_is_shown_as_it_was():
    for how in (lambda m: supermask.hold(m, supermask.prune(m, 0.5)), lambda m: supermask.learn(m, 0.5)):
        model = nn.Sequential(nn.Linear(3, 3), Own())
        before = repr(model)
        how(model)
        assert repr(model) == before
