"""Seeded weight initializations that rebuild bit for bit from (seed, tensor name) on any machine.

Random numbers come from `masks.random_numbers`; from there to weights only + - * / and sqrt are used, which IEEE 754
rounds the same way everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..masks.random_numbers import (
    Array,
    normal,
    random_words,
    signs,
    signs_at,
    to_normal,
    to_uniform,
    uniform,
)
from ..masks.targets import (
    MASKED_BY_DEFAULT,
    NORMS,
    Target,
    as_globs,
    fan_in_and_out,
    find_named,
    find_targets,
    matches,
)
from .plain import to_bytes

# sqrt(2): half of the variance is lost in a ReLU (He et al., Delving Deep into Rectifiers, 2015).
RELU_GAIN = math.sqrt(2.0)
# By what the weights before an activation are multiplied so that variances stay about what they are through the layers:
# as in `torch.nn.init.calculate_gain`, and for GELU, which that does not know, 1 / sqrt(E[gelu(z)^2]) of normal z.
GAINS: dict[str, float] = {
    "relu": RELU_GAIN,
    "leaky-relu": math.sqrt(2.0 / (1.0 + 0.01**2)),
    "gelu": 1.5335304411955353,
    "tanh": 5.0 / 3.0,
    "identity": 1.0,
}
# What the inits are made for.
_OWN_GAINS = {"xavier-normal": 1.0}


def _kaiming_std(shape: tuple[int, ...]) -> float:
    return RELU_GAIN / math.sqrt(fan_in_and_out(shape)[0])


def _xavier_std(shape: tuple[int, ...]) -> float:
    return math.sqrt(2.0 / sum(fan_in_and_out(shape)))


def _kaiming_normal(shape: tuple[int, ...], seed: int, name: str) -> Array:
    return normal(math.prod(shape), seed, name) * _kaiming_std(shape)


def _kaiming_uniform(shape: tuple[int, ...], seed: int, name: str) -> Array:
    return (uniform(math.prod(shape), seed, name) * 2.0 - 1.0) * (math.sqrt(3.0) * _kaiming_std(shape))


def _signed_constant(shape: tuple[int, ...], seed: int, name: str) -> Array:
    return signs(math.prod(shape), seed, name) * _kaiming_std(shape)


def _unsigned_constant(shape: tuple[int, ...], seed: int, name: str) -> Array:
    return np.full(math.prod(shape), _kaiming_std(shape))


def _xavier_normal(shape: tuple[int, ...], seed: int, name: str) -> Array:
    return normal(math.prod(shape), seed, name) * _xavier_std(shape)


def _zeros(shape: tuple[int, ...], seed: int, name: str) -> Array:
    return np.zeros(math.prod(shape))


def _ones(shape: tuple[int, ...], seed: int, name: str) -> Array:
    return np.ones(math.prod(shape))


# Kaiming: He et al. 2015.
# Signed constant: Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020.
# Xavier, also called Glorot: Glorot & Bengio, Understanding the Difficulty of Training Deep Networks, 2010.
WEIGHT_INITS: dict[str, Callable[[tuple[int, ...], int, str], Array]] = {
    "kaiming-normal": _kaiming_normal,
    "kaiming-uniform": _kaiming_uniform,
    "signed-constant": _signed_constant,
    "unsigned-constant": _unsigned_constant,
    "xavier-normal": _xavier_normal,
}
INITS = {**WEIGHT_INITS, "zeros": _zeros, "ones": _ones}


def draw(init: str, shape: Iterable[int], seed: int, name: str, scale: float = 1.0) -> Tensor:
    """Draw one float32 tensor of `shape` from a named init, times `scale`.

        draw("signed-constant", (300, 784), seed=0, name="fc1.weight", scale=(1 / density) ** 0.5)

    `init` is `kaiming-normal`, `kaiming-uniform`, `signed-constant`, `unsigned-constant`, `xavier-normal`, `zeros` or
    `ones`. The result depends on the arguments alone, bit for bit, on every machine and release.

    Raises:
        ValueError: an unknown init, or a weight init of fewer than two dimensions.
    """
    sizes = tuple(int(size) for size in shape)
    values = find_named("init", init, INITS)(sizes, seed, "init/" + name) * scale
    return torch.from_numpy(values.astype(np.float32)).reshape(sizes)


@dataclass(frozen=True)
class Draw:
    """How one tensor is drawn: with this, its seed and its name it need not be stored."""

    init: str
    seed: int
    scale: float
    shape: tuple[int, ...]

    def tensor(self, name: str) -> Tensor:
        """The float32 tensor, equal on every machine (see `draw`)."""
        return draw(self.init, self.shape, self.seed, name, self.scale)


def std_of(draw: Draw) -> float:
    """The standard deviation of what a tensor is drawn from; 0 of zeros and ones.

    The numbers of a signed constant have exactly this magnitude.
    """
    if draw.init not in WEIGHT_INITS:
        return 0.0
    own = _xavier_std if draw.init == "xavier-normal" else _kaiming_std
    return own(draw.shape) * draw.scale


def gain_scale(init: str, gain: str | float) -> float:
    """What an init is multiplied by so that it has another gain than its own: a number, or that of an activation.

    Exactly 1 for the gain of ReLU, which all inits but `xavier-normal` have themselves.

    Raises:
        ValueError: an activation whose gain is not known, or a gain that is not positive.
    """
    factor = find_named("gain", gain, GAINS) if isinstance(gain, str) else float(gain)
    if not 0 < factor < math.inf:
        raise ValueError(f"gain {gain}: expected a positive number, or the name of an activation")
    return factor / _OWN_GAINS.get(init, RELU_GAIN)


def density_scale(density: float) -> float:
    """sqrt(1/density), the factor that keeps a masked layer's variance (Ramanujan et al. 2020)."""
    return 1.0 / math.sqrt(density)


def initialize(
    model: nn.Module,
    init: str,
    seed: int,
    scale: float = 1.0,
    unscaled: str | Iterable[str] = (),
    gain: str | float | None = None,
) -> dict[str, Draw]:
    """Draw the weights of all linear, convolution, attention and recurrent layers anew, in place.

    Biases become 0; the norms of `torch.nn` get scale 1 and shift 0. `scale` multiplies the weights, but for the names
    that fit the globs `unscaled`. `gain` is the gain of all of them in place of the init's own, which is that of ReLU,
    or 1 of `xavier-normal`: that of an activation by its name (see `GAINS`), or a number. Everything else (embeddings,
    tokens, parametrized weights, norms of other packages, which may count from 0) is left as it is.

    Returns:
        How each of these parameters was drawn.

    Raises:
        ValueError: an unknown init or gain.
    """
    find_named("init", init, WEIGHT_INITS)
    globs = as_globs(unscaled)
    common = 1.0 if gain is None else gain_scale(init, gain)
    draws: dict[str, Draw] = {}
    for name, target in find_targets(model, include="*").items():
        shape = tuple(target.parameter.shape)
        if target.kind in MASKED_BY_DEFAULT:
            factor = common if matches(name, globs) else common * float(scale)
            draws[name] = Draw(init, seed, factor * _fan_correction(init, target), shape)
        elif target.kind == "bias" or (target.kind == "norm" and isinstance(target.owners[0][0], NORMS)):
            is_scale = target.kind == "norm" and target.owners[0][1] == "weight"
            draws[name] = Draw("ones" if is_scale else "zeros", 0, 1.0, shape)
        else:
            continue
        with torch.no_grad():
            target.parameter.copy_(draws[name].tensor(name))
    return draws


def _fan_correction(init: str, target: Target) -> float:
    """What makes up for a `draw` that goes by (out, in, *kernel) where the output axis is another; else exactly 1."""
    guess, fans = fan_in_and_out(target.parameter.shape), target.fans
    return math.sqrt(sum(guess) / sum(fans) if init == "xavier-normal" else guess[0] / fans[0])


def draw_at(
    init: str, shape: Iterable[int], seed: int, name: str, places: npt.NDArray[np.int64], scale: float = 1.0
) -> Tensor:
    """The numbers of `draw` that stand at some places of the flattened tensor, without making the others.

    Raises:
        ValueError: as `draw`.
    """
    sizes, key = tuple(int(size) for size in shape), "init/" + name
    count = math.prod(sizes)
    if init == "signed-constant":
        values = signs_at(places, count, seed, key) * _kaiming_std(sizes)
    elif init in ("kaiming-normal", "kaiming-uniform", "xavier-normal"):
        values = to_uniform(random_words(count, seed, key)[places])
        if init == "kaiming-uniform":
            values = (values * 2.0 - 1.0) * (math.sqrt(3.0) * _kaiming_std(sizes))
        else:
            std = _kaiming_std(sizes) if init == "kaiming-normal" else _xavier_std(sizes)
            values = to_normal(values) * std
    else:
        values = find_named("init", init, INITS)(sizes, seed, key)[places]
    return torch.from_numpy((values * scale).astype(np.float32))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order: equal exactly where the tensors are."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(to_bytes(tensor).data)
    return digest.hexdigest()
