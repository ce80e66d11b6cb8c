"""Networks as graphs that run without this package: ONNX and torch.export, checked against the network."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supermask import Ticket

from ..contract.errors import RequestError, RunError
from ..contract.leave import leave_here
from ..runs.experiment import describe_model, find_model

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The largest difference to the network's outputs, over the largest output: sums in another order stay far below it in
# float32.
TOLERANCE = 1e-5
_TRACED, _CHECKED = 2, (1, 2, 5)

Outputs = Callable[[Tensor], Tensor]


def build_network(
    ticket: Ticket, state: str = "final", model: str | Callable[..., nn.Module] | None = None
) -> nn.Module:
    """A ticket's network, masks applied, in evaluation mode.

    Args:
        ticket: the ticket.
        state: `start` or `final`.
        model: what builds a network that is not known by name: a function, or `package.module:function`, which is
            imported. It gets those of the ticket's arguments that it takes.

    Raises:
        RequestError: the architecture is not known by name, cannot be built, or does not fit the ticket.
    """
    if model is None:
        try:
            return ticket.model(state)
        except ValueError as error:
            raise RequestError(
                f"{error}; or name a function that builds it by --model package.module:function"
            ) from None
    factory = find_model(model, leave_here(model))
    takes = inspect.signature(factory).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    given = {key: value for key, value in _arguments(ticket).items() if takes_all or key in takes}
    try:
        return ticket.apply_to(factory(**given), state).eval()
    except Exception as error:
        raise RequestError(f"--model {describe_model(model)}: {type(error).__name__}: {error}") from error


def input_shape_of(ticket: Ticket, asked: Sequence[int] | None = None) -> tuple[int, ...]:
    """The shape of one sample: the one that is asked for, or else the one that the ticket's network was built for.

    Raises:
        RequestError: there is neither, or the network takes several inputs.
    """
    shape = asked or _arguments(ticket).get("input_shape")
    if not shape:
        raise RequestError("the ticket does not tell the shape of a sample; give it by --input-shape, as 3,32,32")
    if isinstance(shape, Mapping) or not all(isinstance(size, int) for size in shape):
        raise RequestError(f"the ticket's network takes several inputs, of shapes {shape}: expected one of one tensor")
    return tuple(map(int, shape))


@torch.no_grad()
def check_shape(network: nn.Module, shape: Sequence[int]) -> None:
    """Check that a network takes samples of a shape.

    Raises:
        RequestError: it does not.
    """
    try:
        network(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).strip().partition("\n")[0]
        raise RequestError(f"the network does not take samples of shape {list(shape)}: {first}") from error


def _arguments(ticket: Ticket) -> Mapping[str, Any]:
    architecture = ticket.meta.get("architecture")
    found = architecture.get("arguments", {}) if isinstance(architecture, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def require_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        RequestError: packages are missing, with the command that installs them.
    """
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise RequestError(f'ONNX needs {", ".join(missing)}: pip install "supermask[onnx]"')


def to_onnx(model: nn.Module, input_shape: Sequence[int]) -> bytes:
    """A network as one ONNX file, with an input `input` of any batch size and an output `output`.

    Raises:
        RequestError: a package is missing.
        RunError: the network cannot be exported, or the outputs of the file differ from its outputs by more than 1e-5
            of the largest.
    """
    require_onnx()
    traced = _trace("onnx", model, input_shape)
    with quiet():
        try:
            program: Any = torch.onnx.export(
                traced, input_names=["input"], output_names=["output"], dynamo=True, external_data=False, verbose=False
            )
        except Exception as error:  # the passes of the exporter raise anything; the first cause tells what was wrong
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            first = str(cause).strip().partition("\n")[0]
            raise RunError(f"--to onnx: ONNX cannot hold the network: {first}") from error
    model_proto = program.model_proto
    _name_batch(model_proto)
    data: bytes = model_proto.SerializeToString()
    check("onnx", model, onnx_session(data), input_shape)
    return data


def _name_batch(proto: Any) -> None:
    """Give the first axis of the input, whatever tracing called it, the name `batch` wherever it stands."""
    traced = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if traced and size.dim_param:
                size.dim_param = re.sub(rf"\b{re.escape(traced)}\b", "batch", size.dim_param)


def to_torch_export(model: nn.Module, input_shape: Sequence[int]) -> bytes:
    """A network as `torch.export.save` writes it (`.pt2`), for any batch size.

    `torch.export.load(path).module()(x)` runs it.

    Raises:
        RunError: as `to_onnx`.
    """
    program = _trace("torch-export", model, input_shape)
    with quiet():
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        data = buffer.getvalue()
        loaded = torch.export.load(io.BytesIO(data)).module()
    check("torch-export", model, loaded, input_shape)
    return data


def onnx_session(data: bytes, threads: int = 0) -> Outputs:
    """A function that runs an ONNX file on the CPU; with `threads` 0, onnxruntime chooses their number."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads that spin after their work would slow down the other networks that are measured in turns with this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run


@torch.no_grad()
def check(what: str, model: nn.Module, other: Outputs, input_shape: Sequence[int]) -> None:
    """Compare two networks on random inputs of several batch sizes.

    Raises:
        RunError: the outputs differ by more than 1e-5 of the largest output, or the other network does not run.
    """
    generator = torch.Generator().manual_seed(0)
    for size in _CHECKED:
        x = torch.randn(size, *input_shape, generator=generator)
        expected = model(x)
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


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two outputs, over the largest expected one."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def _trace(what: str, model: nn.Module, input_shape: Sequence[int]) -> torch.export.ExportedProgram:
    example = torch.randn(_TRACED, *input_shape, generator=torch.Generator().manual_seed(0))
    problems = []
    # Tracing that is not strict works for more networks; strict tracing leaves the batch size free where code asks for
    # `len(x)`.
    for strict in (False, True):
        with quiet():
            try:
                shapes = ({0: torch.export.Dim("batch")},)
                return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=strict)
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                problems.append(f"{type(error).__name__}: {first}")
    where = _culprit(model, example)
    place = f"its module {where} ({type(model.get_submodule(where)).__name__})" if where else "the network"
    raise RunError(f"--to {what}: {place} cannot be traced: {'; '.join(dict.fromkeys(problems))}")


def _culprit(model: nn.Module, example: Tensor) -> str:
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
            model(example)
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
