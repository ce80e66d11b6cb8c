"""Parameters that are kept in bf16: an optimizer whose arithmetic is fp32 and whose results are rounded at random.

A step of training changes a number by less than half the distance to the next bf16 number, which is about 2^-8 of it:
rounded to the nearest one, it would never move. Rounded at random to one of the two beside it, with the higher
probability to the nearer one, it moves by as much as it should on average.

Gupta et al., Deep Learning with Limited Numerical Precision, 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import adam, adamw, sgd

from .noise import draw_uniform, make_key

# What fp32 has more than bf16: so many bits at the end.
_LOWER = 16


def round_at_random(values: Tensor, key: Tensor, step: Tensor, stream: int) -> Tensor:
    """fp32 numbers as bf16, each rounded to one of the two beside it, so that the mean over all keys is the number.

        rounded = round_at_random(values, make_key(seed, "rounding/0"), torch.tensor(step), 0)

    What is a bf16 number already stays as it is, and NaN stays NaN. The result follows from the key, the step, the
    stream and the place in the tensor, bit for bit on every device and in every memory layout.

    Args:
        values: a float32 tensor.
        key: see `live.noise.make_key`.
        step: an int64 tensor without dimensions, on the CPU.
        stream: another one gives other random numbers at the same step.

    Source: Gupta et al., Deep Learning with Limited Numerical Precision, 2015.
    """
    lots = draw_uniform(key, step, stream, values.shape, values.device).mul_(1 << _LOWER).to(torch.int32)
    # What is added to the bits is added to the magnitude, and carries with the probability that is to be cut off.
    bits = (values.view(torch.int32) + lots).bitwise_and_(-1 << _LOWER)
    # The largest NaN would carry into the sign and be a number.
    return torch.where(values.isnan(), values, bits.view(torch.float32)).to(torch.bfloat16)


class RoundedOptimizer(torch.optim.Optimizer):
    """SGD, Adam or AdamW of PyTorch for parameters of which some are bf16: their moments are bf16 too.

        optimizer = RoundedOptimizer(model.parameters(), "sgd", lr=0.1, momentum=0.9, seed=0)

    New values and moments of a bf16 parameter are computed in fp32, one tensor after another, and rounded at random
    (see `round_at_random`); a parameter of another type and its moments are as PyTorch has them. The same seed gives
    the same numbers, of an optimizer that goes on from its `state_dict` too.

    Args:
        params: the parameters, or groups of them (see `torch.optim`).
        kind: `sgd`, `adam` or `adamw`.
        lr: learning rate.
        momentum: of SGD.
        nesterov: Nesterov momentum of SGD.
        betas: of Adam's moments.
        eps: of Adam.
        weight_decay: added to the gradient; of AdamW taken from the values.
        seed: of the rounding.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(
        self,
        params: Iterable[Any],
        kind: Literal["sgd", "adam", "adamw"] = "sgd",
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        if kind not in ("sgd", "adam", "adamw"):
            raise ValueError(f"expected kind sgd, adam or adamw, got {kind!r}")
        super().__init__(
            params,
            {
                "kind": kind, "lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps,
                "weight_decay": weight_decay, "seed": seed,
            },
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; gives back what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    self._update(parameter, gradient, group, _key(group["seed"], place))
                place += 1
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], key: Tensor) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        rounded = parameter.dtype == torch.bfloat16
        value, gradient = (each.float() if rounded else each for each in (parameter, gradient))
        wide = {name: moment.float() if rounded else moment for name, moment in state.items() if name != "step"}
        new = _step(group, value, gradient, wide, state["step"])
        if not rounded:
            state.update(new)
            return
        step = state["step"].long()
        parameter.copy_(round_at_random(value, key, step, 0))
        for stream, (name, moment) in enumerate(new.items(), 1):
            state.setdefault(name, torch.empty_like(parameter)).copy_(round_at_random(moment, key, step, stream))


@cache
def _key(seed: int, place: int) -> Tensor:
    return make_key(seed, f"rounding/{place}")


def _step(
    group: dict[str, Any], value: Any, gradient: Any, moments: dict[str, Tensor], step: Tensor
) -> dict[str, Tensor]:
    """A step of PyTorch's own, in place: of the value, the count of steps, and the moments, which it gives back."""
    decay, rate = group["weight_decay"], group["lr"]
    if group["kind"] == "sgd":
        step += 1
        buffers: list[Tensor | None] = [moments.get("momentum_buffer")]
        sgd.sgd(
            [value], [gradient], buffers, foreach=False, weight_decay=decay, momentum=group["momentum"], lr=rate,
            dampening=0.0, nesterov=group["nesterov"], maximize=False,
        )  # fmt: skip
        return {"momentum_buffer": buffers[0]} if buffers[0] is not None else {}
    first, second = (
        moments[name] if name in moments else torch.zeros_like(value) for name in ("exp_avg", "exp_avg_sq")
    )
    (adamw.adamw if group["kind"] == "adamw" else adam.adam)(
        [value], [gradient], [first], [second], [], [step], foreach=False, amsgrad=False, beta1=group["betas"][0],
        beta2=group["betas"][1], lr=rate, weight_decay=decay, eps=group["eps"], maximize=False,
    )  # fmt: skip
    return {"exp_avg": first, "exp_avg_sq": second}
