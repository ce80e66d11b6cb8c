"""Networks as ONNX and torch.export files: beside each file the network itself."""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import supermask
from supermask import Masks, Ticket, make_state
from supermask.weights.architectures import find_architecture
from ticket_search import RequestError, RunError
from ticket_search.data.examples import floats, random_samples
from ticket_search.data.trees import flat_names
from ticket_search.deploy import onnx as graphs
from ticket_search.deploy.export import export
from ticket_search.deploy.onnx import check, difference, onnx_session, to_onnx, to_torch_export
from ticket_search.models.names import model_names

SHAPE = (1, 8, 8)
SAMPLES = random_samples(floats(list(SHAPE)))
TOKENS = random_samples({"dtype": "int64", "shape": [9], "range": [0, 4]})


@torch.no_grad()
def disturbed(model: nn.Module) -> nn.Module:
    """Evaluation mode with every statistic, affine and head away from 0 and 1, and half of the weights dropped."""
    generator = torch.Generator().manual_seed(1)
    residual = any("shortcut" in name or "attention" in name for name, _ in model.named_modules())
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.rand(tensor.shape, generator=generator) - 0.5
        if name.endswith(("bias", "mean")):
            tensor.copy_(noise / 10)
        elif tensor.dim() < 2:
            tensor.copy_(noise + 1)
        elif not tensor.any():
            tensor.copy_(noise)
        elif not residual:
            tensor.mul_(2.5)  # so that deep networks pass on what they get
    masks = supermask.prune(model, 0.5)
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name])
    return model.eval()


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return disturbed(find_architecture(name)((9,) if name == "gpt-tiny" else SHAPE, 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_network_as_onnx_and_as_torch_export(name):
    model = network(name)
    samples = TOKENS if name == "gpt-tiny" else SAMPLES
    x = samples(7)  # neither the batch traced nor one that the exporter checks
    with torch.no_grad():
        expected = model(x)
        assert expected.std(0).max() > 1e-3 * expected.abs().max()
        assert difference(onnx_session(to_onnx(model, samples))(x), expected) <= 1e-5
        program = torch.export.load(io.BytesIO(to_torch_export(model, samples)))
        assert difference(program.module()(x), expected) <= 1e-5


def a_ticket(name: str = "lenet-300-100", **arguments) -> Ticket:
    model = network("lenet-300-100")
    masks = Masks({name: weight != 0 for name, weight in model.named_parameters() if weight.dim() > 1})
    meta = {"architecture": {"name": name, "arguments": arguments}}
    return Ticket(masks, {"final": make_state(model.state_dict(), masks)}, meta)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_the_command_writes_the_network_and_nothing_else_is_said(to, ticket, tmp_path):
    made = a_ticket(input_shape=SHAPE, classes=5)
    supermask.save(made, tmp_path / "t.safetensors")
    answer = ticket("export", "t.safetensors", "--to", to, "--output", "net")
    assert (answer.code, answer.err) == (0, ""), answer
    size = (tmp_path / "net").stat().st_size
    assert answer.out == f"wrote net ({size:,} bytes)\n"
    x = torch.randn(4, *SHAPE)
    data = (tmp_path / "net").read_bytes()
    run = onnx_session(data) if to == "onnx" else torch.export.load(io.BytesIO(data)).module()
    assert difference(run(x), made.model()(x)) <= 1e-5
    again = ticket("export", "t.safetensors", "--to", to, "--output", "net")
    assert again.code == 2 and "net exists; nothing is overwritten" in again.err
    assert (tmp_path / "net").read_bytes() == data


def test_a_network_that_is_not_known_by_name(tmp_path, ticket):
    supermask.save(a_ticket("mine.net:make"), tmp_path / "t.safetensors")
    words = ("export", "t.safetensors", "--to", "torch-export", "--output", "net.pt2")
    unknown = ticket(*words)
    assert unknown.code == 2 and "--model package.module:function" in unknown.err
    known = (*words, "--model", "test_graphs:small_lenet")
    assert "--input-shape" in ticket(*known).err
    assert "expected positive numbers" in ticket(*known, "--input-shape", "1,8,x").err
    wrong = ticket(*words, "--model", "test_graphs:another")
    assert wrong.code == 2 and "--model test_graphs:another" in wrong.err
    assert not (tmp_path / "net.pt2").exists()
    done = ticket(*known, "--input-shape", "1,8,8")
    assert done.code == 0, done.err
    x = torch.randn(3, *SHAPE)
    assert difference(torch.export.load(tmp_path / "net.pt2").module()(x), network("lenet-300-100")(x)) <= 1e-5


def small_lenet() -> nn.Module:
    return find_architecture("lenet-300-100")(SHAPE, 5)


def another() -> nn.Module:
    return nn.Linear(3, 4)


def test_a_file_with_other_outputs_is_refused():
    model = network("lenet-300-100")
    check("onnx", model, model, SAMPLES)
    for other in (lambda x: model(x) * 1.00003, lambda x: model(x) * float("nan")):
        with pytest.raises(RunError, match="differ from the network's"):
            check("onnx", model, other, SAMPLES)


def test_what_cannot_be_traced_says_why():
    class Deciding(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    class OneSize(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1)

    with pytest.raises(RunError, match="--to torch-export: the network cannot be traced"):
        to_torch_export(Deciding().eval(), SAMPLES)
    with pytest.raises(RunError, match="--to onnx: the network cannot be traced"):
        to_onnx(OneSize().eval(), SAMPLES)
    inside = nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), Deciding()), nn.Linear(64, 5))
    with pytest.raises(RunError, match=r"--to torch-export: its module 1.1 \(Deciding\) cannot be traced"):
        to_torch_export(inside.eval(), SAMPLES)
    with pytest.raises(RunError, match="does not run at batch size 1: "):
        check("onnx", nn.Flatten(), OneSize(), SAMPLES)


@dataclass
class Given:
    linear: torch.Tensor
    pair: tuple[torch.Tensor, torch.Tensor]
    x: torch.Tensor
    cache: object = None


class Tree(nn.Module):
    """Floats, tokens and a mask; its outputs are called as values within the graph, and as an input."""

    def __init__(self):
        super().__init__()
        self.tokens, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, ids, mask):
        hidden = self.body(x + self.tokens(ids).mean(1)).relu() * mask.unsqueeze(1)
        found = self.head(hidden)
        return Given(found, (found, hidden + 1), x, object())


PARTS = [
    {"dtype": "bool", "shape": []}, {"dtype": "int64", "shape": [5], "range": [2, 8]}, {"dtype": "float32", "shape": [4]},
]  # fmt: skip
BY_NAME = random_samples(dict(zip(("mask", "ids", "x"), PARTS, strict=True)))
BY_PLACE = random_samples(PARTS[::-1])


@pytest.mark.slow
def test_a_graph_of_several_tensors_has_their_names():
    onnx = pytest.importorskip("onnx")
    model = disturbed(Tree())
    data = to_onnx(model, BY_NAME)
    graph = onnx.load_from_string(data).graph
    assert [value.name for value in graph.input] == ["x", "ids", "mask"]
    assert [value.name for value in graph.output] == ["linear", "pair", "pair_1", "x_out"]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)} == {"batch"}
    x, ids, mask = (BY_NAME(7)[name] for name in ("x", "ids", "mask"))
    expected = model(x, ids, mask)
    for ours, theirs in zip(
        onnx_session(data)({"ids": ids, "mask": mask, "x": x}), (expected.linear, *expected.pair, x), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert flat_names(BY_PLACE(1), "input") == ["input", "input_1", "input_2"]
    assert flat_names({"pair": BY_PLACE(1)[:2], "deep": ({"x": x},)}, "input") == ["pair", "pair_1", "deep.x"]


def test_a_program_takes_what_the_network_takes_and_gives_no_class_of_its_own():
    model = disturbed(Tree())
    program = torch.export.load(io.BytesIO(to_torch_export(model, BY_NAME))).module()
    batch = BY_NAME(7)
    found = program(**batch)
    assert list(found) == ["linear", "pair", "x"] and type(found["pair"]) is tuple
    torch.testing.assert_close(found["pair"], model(**batch).pair)
    assert not model._forward_hooks


def test_what_forward_does_not_name_is_said():
    class Whole(Tree):
        def forward(self, **batch):
            return super().forward(**batch)

    with pytest.raises(RunError, match=r"does not name mask, ids, x: expected forward\(self, mask, ids, x\)"):
        to_onnx(Whole().eval(), BY_NAME)


def test_a_sample_of_several_tensors_has_no_one_shape(tmp_path):
    model = Tree()
    masks = supermask.prune(model, 0.5)
    states = {"final": make_state(model.state_dict(), masks)}
    made, damaged = (
        Ticket(masks, states, {"sample": form}) for form in (PARTS[::-1], [{"dtype": "int64", "shape": [5]}])
    )
    with pytest.raises(
        RequestError, match="--input-shape 4 is the shape of one tensor, and a sample of this ticket is sev"
    ):
        export(made, "compact", tmp_path / "net", model=Tree, input_shape=(4,))
    with pytest.raises(RequestError, match="the ticket says that a sample is .*, expected dtype, shape and"):
        export(damaged, "compact", tmp_path / "net", model=Tree)
    small = supermask.load_compact(export(made, "compact", tmp_path / "net", model=Tree), model=Tree())
    batch = BY_PLACE(5)
    torch.testing.assert_close(small(*batch).pair, made.apply_to(Tree()).eval()(*batch).pair)


@pytest.mark.slow
def test_what_onnx_cannot_hold_is_said():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x.flatten(1))

    with pytest.raises(RunError, match="--to onnx: ONNX cannot hold the network: .*bessel_j0"):
        to_onnx(Odd().eval(), SAMPLES)


def test_samples_of_another_shape_are_said(tmp_path, ticket):
    supermask.save(a_ticket(input_shape=list(SHAPE), classes=5), tmp_path / "t.safetensors")
    for words in (
        ["export", "--to", "onnx", "--output", "net.onnx"],
        ["export", "--to", "compact", "--output", "n"],
        ["bench"],
    ):
        answer = ticket(words[0], "t.safetensors", *words[1:], "--input-shape", "3,32,32")
        assert answer.code == 2, answer.err
        assert re.search(r"does not take samples of shape \[3, 32, 32\]: .*mat1 and mat2", answer.err)


def test_missing_packages_are_said_with_what_to_type(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(RequestError) as caught:
        export(a_ticket(input_shape=SHAPE, classes=5), "onnx", tmp_path / "no" / "net.onnx")
    assert caught.value.problems[1:] == ['ONNX needs onnxscript: pip install "supermask[onnx]"']
    assert len(caught.value.problems) == 2


def test_tensors_alone_need_no_network(tmp_path):
    with pytest.raises(RequestError, match="not npz, which holds tensors only"):
        export(a_ticket(), "npz", tmp_path / "net.npz", model=small_lenet)


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "torch-export", "compact"])
def test_a_compacted_network_is_exported(to, tmp_path, ticket):
    torch.manual_seed(0)
    model = find_architecture("lenet-300-100")(SHAPE, 5)
    masks = supermask.prune(model, 0.5, granularity="filter", example_input=torch.ones(2, *SHAPE))
    arguments = {"input_shape": list(SHAPE), "classes": 5}
    meta = {"architecture": {"name": "test_graphs:small_lenet", "arguments": arguments}}
    made = supermask.Ticket(masks, {"final": supermask.make_state(model.state_dict(), masks)}, meta)
    supermask.save(made, tmp_path / "t.safetensors")
    words = ["export", "t.safetensors", "--to", to, "--output", "net", "--model", "test_graphs:small_lenet"]
    answer = ticket(*words, *(["--compact"] if to != "compact" else []))
    assert answer.code == 0, answer.err
    whole = made.apply_to(small_lenet()).eval()
    x = torch.randn(3, *SHAPE)
    if to == "onnx":
        found = onnx_session((tmp_path / "net").read_bytes())(x)
    elif to == "torch-export":
        found = torch.export.load(tmp_path / "net").module()(x)
    else:
        # Not by the name in the ticket: what was given is another network.
        with pytest.raises(supermask.TicketError, match="names no architecture: give the whole network as model="):
            supermask.load_compact(tmp_path / "net")
        found = supermask.load_compact(tmp_path / "net", model=small_lenet())(x)
    assert difference(found, whole(x)) <= 1e-5
    assert (tmp_path / "net").stat().st_size < 0.6 * 4 * sum(p.numel() for p in whole.parameters())
    again = ticket("export", "t.safetensors", "--to", "npz", "--output", "npz", "--compact")
    assert again.code == 2 and "--compact goes with --to onnx and torch-export, not npz" in again.err


def test_quiet_gives_warnings_and_logs_back():
    with graphs.quiet() as said:
        print("chatter")
        warnings.warn("more", stacklevel=1)
    assert said.getvalue() == "chatter\n"
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
