"""Networks as graphs that run without this package: ONNX and torch.export, checked against the network."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supermask.choosing.gradients import call, tensors_in
from supermask.shrinking.trials import relative_difference

from ..contract.errors import RequestError, RunError
from ..data.examples import Examples
from ..data.trees import flat_names
from ..training.outputs import plain_outputs

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The largest difference to the network's outputs, over the largest output: sums in another order stay far below it in
# float32.
TOLERANCE = 1e-5
_TRACED, _CHECKED = 2, (1, 2, 5)

# What runs a network on a batch: a tensor, or a tree of tensors.
Outputs = Callable[[Any], Any]


def require_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        RequestError: packages are missing, with the command that installs them.
    """
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise RequestError(f'ONNX needs {", ".join(missing)}: pip install "supermask[onnx]"')


def to_onnx(model: nn.Module, examples: Examples) -> bytes:
    """A network as one ONNX file, for batches of any size.

    Inputs and outputs are called as the keys of a dictionary or the fields of a dataclass. A tensor is `input` or
    `output`, the next ones of a tuple `input_1`, `output_1` and so on. An output with the name of an input has `_out`
    behind it.

    Raises:
        RequestError: a package is missing.
        RunError: the network cannot be exported, or the outputs of the file differ from its outputs by more than 1e-5
            of the largest.
    """
    require_onnx()
    traced = _trace("onnx", model, examples)
    with quiet():
        try:
            program: Any = torch.onnx.export(traced, dynamo=True, external_data=False, verbose=False)
        except Exception as error:  # the passes of the exporter raise anything; the first cause tells what was wrong
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            first = str(cause).strip().partition("\n")[0]
            raise RunError(f"--to onnx: ONNX cannot hold the network: {first}") from error
    example = examples(_TRACED)
    args, named = _arguments(model, example)
    inputs = _input_names(named or args)
    with torch.no_grad():
        outputs = flat_names(plain_outputs(call(model, example)), "output")
    _name_values(program.model.graph, inputs, _distinct(outputs, inputs, "_out"))
    model_proto = program.model_proto
    _name_batch(model_proto)
    data: bytes = model_proto.SerializeToString()
    check("onnx", model, onnx_session(data), examples)
    return data


def _input_names(inputs: Any) -> list[str]:
    return _distinct(flat_names(inputs, "input"), (), "_in")


def _distinct(names: Iterable[str], taken: Iterable[str], behind: str) -> list[str]:
    """Names that are not taken, and of which no two are alike."""
    found, known = [], set(taken)
    for name in names:
        while name in known:
            name += behind
        known.add(name)
        found.append(name)
    return found


def _name_values(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name what goes in and out of a graph, and anew what has one of these names within."""
    ends = [*graph.inputs, *graph.outputs]
    inside = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    known = {*inputs, *outputs, *(value.name for value in inside)}
    for value in inside:
        if value.name in inputs or value.name in outputs:
            (value.name,) = _distinct([value.name], known, "_inside")
            known.add(value.name)
    for value, name in zip(ends, [*inputs, *outputs], strict=True):
        value.name = name


def _name_batch(proto: Any) -> None:
    """Give the first axis of the inputs, whatever tracing called it, the name `batch` wherever it stands."""
    traced = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if traced and size.dim_param:
                size.dim_param = re.sub(rf"\b{re.escape(traced)}\b", "batch", size.dim_param)


def to_torch_export(model: nn.Module, examples: Examples) -> bytes:
    """A network as `torch.export.save` writes it (`.pt2`), for any batch size.

    `torch.export.load(path).module()(x)` runs it, with the arguments of the network. It gives tensors in tuples and
    dictionaries, whatever class the network gives them in.

    Raises:
        RunError: as `to_onnx`.
    """
    program = _trace("torch-export", model, examples)
    with quiet():
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        data = buffer.getvalue()
        loaded = torch.export.load(io.BytesIO(data)).module()
    check("torch-export", model, partial(call, loaded), examples)
    return data


def onnx_session(data: bytes, threads: int = 0) -> Outputs:
    """A function that runs an ONNX file on the CPU and gives its outputs in a tuple.

    With `threads` 0, onnxruntime chooses their number.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads that spin after their work would slow down the other networks that are measured in turns with this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(inputs: Any) -> tuple[Tensor, ...]:
        given = {name: x.numpy() for name, x in zip(_input_names(inputs), tensors_in(inputs), strict=True)}
        return tuple(torch.from_numpy(found) for found in session.run(None, given))

    return run


@torch.no_grad()
def check(what: str, model: nn.Module, other: Outputs, examples: Examples) -> None:
    """Compare two networks at several batch sizes.

    Raises:
        RunError: the outputs differ by more than 1e-5 of the largest output, or the other network does not run.
    """
    for size in _CHECKED:
        x = examples(size)
        expected = call(model, x)
        try:
            apart = difference(other(x), expected)
        except Exception as error:
            raise RunError(
                f"--to {what}: the file does not run at batch size {size}: {error}; nothing was written"
            ) from error
        # Written so that NaN fails.
        if not apart <= TOLERANCE:
            raise RunError(
                f"--to {what}: the file's outputs differ from the network's by {apart:.3g} of the largest output at "
                f"batch size {size}, where {TOLERANCE:g} is allowed; nothing was written"
            )


def difference(found: Any, expected: Any) -> float:
    """The largest difference of outputs, over the largest of the expected tensor: see `relative_difference`.

    NaN where an expected tensor has no finite number, which proves nothing.

    Raises:
        ValueError: outputs of other shapes.
    """
    ours, theirs = ([tensor.detach() for tensor in tensors_in(outputs)] for outputs in (found, expected))
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"it gives outputs of shapes {shapes[0]}, expected {shapes[1]}")
    if any(tensor.numel() and not bool(torch.isfinite(tensor).any()) for tensor in theirs):
        return float("nan")
    return relative_difference(theirs, ours)


def _trace(what: str, model: nn.Module, examples: Examples) -> torch.export.ExportedProgram:
    example = examples(_TRACED)
    args, named = _arguments(model, example)
    if isinstance(example, Mapping) and (lost := [name for name in example if name not in named]):
        raise RunError(
            f"--to {what}: the network cannot be traced, because its forward() takes all that it is given and does not "
            f"name {', '.join(lost)}: expected forward(self, {', '.join(example)})"
        )
    batch, shapes = torch.export.Dim("batch"), torch.export.ShapesCollection()
    for tensor in tensors_in(example):
        shapes[tensor] = {0: batch}
    problems = []
    # A class of its own, as of a dataclass, is nothing that a file can hold.
    plain = model.register_forward_hook(lambda _module, _inputs, outputs: plain_outputs(outputs))
    try:
        # Tracing that is not strict works for more networks; strict tracing leaves the batch size free where code asks
        # for `len(x)`.
        for strict in (False, True):
            with quiet():
                try:
                    dynamic = shapes.dynamic_shapes(model, args, named)
                    return torch.export.export(model, args, named, dynamic_shapes=dynamic, strict=strict)
                except Exception as error:
                    first = str(error).strip().partition("\n")[0]
                    problems.append(f"{type(error).__name__}: {first}")
    finally:
        plain.remove()
    where = _culprit(model, example)
    place = f"its module {where} ({type(model.get_submodule(where)).__name__})" if where else "the network"
    raise RunError(f"--to {what}: {place} cannot be traced: {'; '.join(dict.fromkeys(problems))}")


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `call` gives a network, by place and by name: in the order of its own arguments, and without any others."""
    if isinstance(inputs, Mapping):
        return (), {name: inputs[name] for name in inspect.signature(model.forward).parameters if name in inputs}
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _culprit(model: nn.Module, example: Any) -> str:
    """The name of the innermost module that cannot be traced with its inputs of a forward pass; "" if there is none."""
    given: dict[str, tuple[Any, Any]] = {}

    def note(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given.setdefault(name, (args, kwargs))

    handles = [
        module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    found = ""
    for name, (args, kwargs) in given.items():  # outer modules come before those inside them
        if found and not name.startswith(f"{found}."):
            continue
        with quiet():
            try:
                torch.export.export(model.get_submodule(name), args, kwargs, strict=False)
            except Exception:
                found = name
    return found


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep output, warnings and logs of exporters and compilers off the screen; yields what was printed."""
    said, level = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(level)
