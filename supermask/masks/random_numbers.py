"""Random numbers that depend on a seed and a name only, equal bit for bit on every machine.

Random bits come from the counter-based Philox generator of NumPy, keyed by the SHA-256 of seed and name. From bits to
numbers only + - * / and sqrt are used, which IEEE 754 rounds the same way everywhere; library logarithms and normal
draws are not. PyTorch promises equal random numbers neither across releases nor between processors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


def random_words(count: int, seed: int, name: str) -> Words:
    """`count` random 64-bit words that depend on `seed` and `name` only."""
    return words_at(count, key_of(seed, name))


def key_of(seed: int, name: str) -> Words:
    """What `seed` and `name` make of the generator: its key, two 64-bit words."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)


def words_at(count: int, key: Words, step: int = 0, stream: int = 0) -> Words:
    """`count` random 64-bit words of a key (see `key_of`) at a step: other ones at every step and in every stream.

    Step and stream are digits of the generator's 256-bit counter above the 64 bits that count words, so no two of them
    meet. At step 0 of stream 0 these are the `random_words` of the key's seed and name.
    """
    generator = np.random.Philox(key=key, counter=np.array([0, stream, step, 0], dtype=np.uint64))
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def uniform(count: int, seed: int, name: str) -> Array:
    """`count` uniform numbers strictly inside (0, 1), on a grid of 2^-53 that is symmetric about 1/2."""
    return to_uniform(random_words(count, seed, name))


def lots(count: int, share: float, seed: int, name: str) -> npt.NDArray[np.bool_]:
    """Which of `count` things are drawn by lot, each with probability `share`: where `uniform` is below it."""
    # (m + 1/2) / 2^52 < share of the upper 52 bits m, said of whole words: no number is made of them.
    bound = math.ceil(Fraction(share) * 2**52 - Fraction(1, 2)) << 12
    if not 0 < bound < 2**64:
        return np.full(count, bound > 0)
    return random_words(count, seed, name) < np.uint64(bound)


def to_uniform(words: Words) -> Array:
    """Random words as uniform numbers strictly inside (0, 1)."""
    # 52 bits and a half: one bit more could round up to exactly 1.
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def uniform_floats(count: int, key: Words, step: int, stream: int) -> npt.NDArray[np.float32]:
    """`count` float32 numbers strictly inside (0, 1), on a grid of 2^-24: two of each of the words of `words_at`."""
    halves = words_at((count + 1) // 2, key, step, stream).astype("<u8", copy=False).view("<u4")[:count]
    # 23 bits behind the exponent of 1 are a number in [1, 2); what is taken from it puts it between those of the grid.
    halves >>= np.uint32(9)
    halves |= np.uint32(0x3F800000)
    floats = halves.view("<f4").astype(np.float32, copy=False)
    floats -= np.float32(1 - 2.0**-24)
    return floats


def normal_floats(count: int, key: Words, step: int, stream: int) -> npt.NDArray[np.float32]:
    """`count` standard normal numbers in float32, of the words of `words_at`."""
    return to_normal(to_uniform(words_at(count, key, step, stream))).astype(np.float32)


def normal(count: int, seed: int, name: str) -> Array:
    """`count` standard normal numbers."""
    return to_normal(uniform(count, seed, name))


def to_normal(draws: Array) -> Array:
    """Uniform numbers as standard normal ones."""
    values = np.empty(draws.size)
    chunk = 1 << 20
    for start in range(0, draws.size, chunk):
        values[start : start + chunk] = _normal_quantile(draws[start : start + chunk])
    return values


def signs(count: int, seed: int, name: str) -> Array:
    """`count` random signs, -1.0 or 1.0, one random bit each."""
    words = random_words((count + 63) // 64, seed, name).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=count)
    return bits.astype(np.float64) * 2.0 - 1.0


def signs_at(places: npt.NDArray[np.int64], count: int, seed: int, name: str) -> Array:
    """Those of `count` random signs that stand at some places."""
    words = random_words((count + 63) // 64, seed, name)
    bits: Words = (words[places >> 6] >> (places & 63).astype(np.uint64)) & np.uint64(1)
    return bits.astype(np.float64) * 2.0 - 1.0


def permutation(count: int, seed: int, name: str) -> npt.NDArray[np.int64]:
    """A random order of `count` things."""
    return np.argsort(random_words(count, seed, name), kind="stable")


_LN2 = 0.6931471805599453  # written out: a C library's log(2) may differ in the last bit


def _log(x: Array) -> Array:
    """Natural logarithm of positive numbers by frexp and the series of artanh, equal on every machine."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = exponent - small
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = np.full_like(ratio, 1.0 / 23.0)
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    return 2.0 * ratio * series + exponent * _LN2


def _polynomial(coefficients: Iterable[float], x: Array) -> Array:
    value = np.zeros_like(x)
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


# Coefficients of algorithm AS241 PPND16 (Wichura, The Percentage Points of the Normal Distribution, 1988), relative
# accuracy about 1e-16, from the highest power down.
_CENTRAL = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def _normal_quantile(probability: Array) -> Array:
    """Inverse of the standard normal distribution function (Wichura 1988) with our own logarithm."""
    centered = probability - 0.5
    inside = np.abs(centered) <= 0.425
    inner = centered[inside]
    square = 0.180625 - inner * inner
    result = np.empty_like(probability)
    result[inside] = inner * _polynomial(_CENTRAL[0], square) / _polynomial(_CENTRAL[1], square)
    outer = probability[~inside]
    radius = np.sqrt(-_log(np.minimum(outer, 1.0 - outer)))
    near, far = radius - 1.6, radius - 5.0
    tail = np.where(
        radius <= 5.0,
        _polynomial(_MIDDLE[0], near) / _polynomial(_MIDDLE[1], near),
        _polynomial(_TAIL[0], far) / _polynomial(_TAIL[1], far),
    )
    result[~inside] = np.where(outer < 0.5, -tail, tail)
    return result
