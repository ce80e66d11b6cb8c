"""Uniform numbers of the counter-based generator Philox4x64-10, in Triton: bit for bit those of `noise.cpp`.

Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
"""

import triton
import triton.language as tl


# Triton compiles anew for a number that is 1, or of fewer bits.
@triton.jit(do_not_specialize=["size", "key0", "key1", "step", "stream"])
def draw_uniform(values, size, key0, key1, step, stream, BLOCK: tl.constexpr):
    """Eight numbers of each count of the generator, strictly inside (0, 1); the words are given as signed ones."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zero = (at * 0).to(tl.uint64)
    # The generator counts before it draws.
    a = (at + 1).to(tl.uint64)
    b = zero + stream.to(tl.uint64)
    c = zero + step.to(tl.uint64)
    d = zero
    one = zero + key0.to(tl.uint64)
    other = zero + key1.to(tl.uint64)
    first = zero + 0xD2E7470EE14C6C93
    second = zero + 0xCA5A826395121157
    for _ in tl.static_range(10):
        low0 = first * a
        high0 = tl.umulhi(first, a)
        low1 = second * c
        high1 = tl.umulhi(second, c)
        a = high1 ^ b ^ one
        b = low1
        c = high0 ^ d ^ other
        d = low0
        one += 0x9E3779B97F4A7C15
        other += 0xBB67AE8584CAA73B
    _store(values, size, 8 * at, a)
    _store(values, size, 8 * at + 2, b)
    _store(values, size, 8 * at + 4, c)
    _store(values, size, 8 * at + 6, d)


@triton.jit
def _store(values, size, place, word):
    """Two numbers of a word, of its lower half first."""
    for half in tl.static_range(2):
        bits = ((word >> (32 * half + 9)) & 0x7FFFFF).to(tl.int32) | 0x3F800000
        # From [1, 2) to between the numbers of the grid.
        number = bits.to(tl.float32, bitcast=True) - (1.0 - 5.9604644775390625e-08)
        tl.store(values + place + half, number, mask=place + half < size)
