"""The kernels of `radix`, in Triton: a program has a block of one layer, or a group of layers that is ranked together.

Without a GPU they can be interpreted (`TRITON_INTERPRET=1`), and compiled for one.
"""

import triton
import triton.language as tl


@triton.jit
def _place(position, inner, spatial, PERMUTED: tl.constexpr):
    """Where in memory the element at this position in row-major order is."""
    place = position
    if PERMUTED:
        rest = position % (inner * spatial)
        place = position - rest + (rest % spatial) * inner + rest // spatial
    return place


@triton.jit
def _position(place, inner, spatial, PERMUTED: tl.constexpr):
    """Which position in row-major order the element at this place in memory has."""
    position = place
    if PERMUTED:
        rest = place % (inner * spatial)
        position = place - rest + (rest % inner) * spatial + rest // inner
    return position


@triton.jit
def _bits(address, place, inside, BITS: tl.constexpr):
    """The bits of |s| as integers, which are ordered as the numbers are."""
    if BITS == 31:
        bits = tl.load(address.to(tl.pointer_type(tl.int32)) + place, mask=inside, other=0)
    else:
        bits = tl.load(address.to(tl.pointer_type(tl.int16)) + place, mask=inside, other=0).to(tl.int32)
    return bits & ((1 << BITS) - 1)


@triton.jit
def count_bins(
    addresses, blocks, layers, prefix, bins, odd,
    SHIFT: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, INFINITY: tl.constexpr, BITS: tl.constexpr,
    BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Count the keys of a block by their next bits, those that have the bits found so far."""
    block = tl.program_id(0)
    layer = tl.load(blocks + 2 * block)
    group = tl.load(layers + 4 * layer + 3)
    offsets = tl.load(blocks + 2 * block + 1) + tl.arange(0, BLOCK)
    inside = offsets < tl.load(layers + 4 * layer)
    key = _bits(tl.load(addresses + layer), offsets, inside, BITS)
    if FIRST:
        if tl.max(key, 0) > INFINITY:
            tl.store(odd + group, 1)
    else:
        inside = inside & ((key >> (SHIFT + WIDTH)) == tl.load(prefix + group))
    # What does not count goes to a bin of its own, above the others.
    found = tl.histogram(tl.where(inside, (key >> SHIFT) & ((1 << WIDTH) - 1), BINS), 2 * BINS)
    at = tl.arange(0, 2 * BINS)
    tl.atomic_add(bins + group * BINS + at, found, mask=(at < BINS) & (found > 0))


@triton.jit
def pick_bin(counts, prefix, missing, bins, WIDTH: tl.constexpr, FIRST: tl.constexpr, BINS: tl.constexpr):
    """The bin in which the k-th largest key is, and how many of its keys are still to be chosen."""
    group = tl.program_id(0)
    at = tl.arange(0, BINS)
    found = tl.load(bins + group * BINS + at)
    if FIRST:
        wanted = tl.load(counts + group)
        before = wanted * 0
    else:
        wanted = tl.load(missing + group)
        before = tl.load(prefix + group)
    from_here = tl.sum(found, 0) - tl.cumsum(found, 0) + found
    chosen = tl.maximum(tl.sum((from_here >= wanted).to(tl.int32), 0) - 1, 0)
    tl.store(prefix + group, (before << WIDTH) | chosen)
    tl.store(missing + group, wanted - tl.sum(tl.where(at > chosen, found, 0), 0))


@triton.jit
def count_equals(
    addresses, blocks, layers, prefix, equals, BITS: tl.constexpr, PERMUTED: tl.constexpr, BLOCK: tl.constexpr
):
    """How many keys of a block, in row-major order, equal the k-th largest."""
    block = tl.program_id(0)
    layer = tl.load(blocks + 2 * block)
    row = layers + 4 * layer
    offsets = tl.load(blocks + 2 * block + 1) + tl.arange(0, BLOCK)
    inside = offsets < tl.load(row)
    place = _place(offsets, tl.load(row + 1), tl.load(row + 2), PERMUTED)
    key = _bits(tl.load(addresses + layer), place, inside, BITS)
    equal = inside & (key == tl.load(prefix + tl.load(row + 3)))
    tl.store(equals + block, tl.sum(equal.to(tl.int32), 0))


@triton.jit
def find_last(
    addresses, blocks, layers, groups, prefix, missing, equals, odd, thresholds, last,
    BITS: tl.constexpr, PERMUTED: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, LAYERS: tl.constexpr,
):  # fmt: skip
    """The cut of each layer of a group: the k-th largest, and where the last of its equals that is kept is."""
    group = tl.program_id(0)
    first_layer = tl.load(groups + 4 * group)
    layer_count = tl.load(groups + 4 * group + 1)
    first_block = tl.load(groups + 4 * group + 2)
    block_count = tl.load(groups + 4 * group + 3)
    wanted = tl.load(missing + group)
    threshold = tl.load(prefix + group)
    # In which block it is, and how many equals are before that one.
    block = first_block
    earlier = wanted * 0
    total = wanted * 0
    for start in range(0, block_count, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        inside = at < block_count
        counts = tl.load(equals + first_block + at, mask=inside, other=0)
        short = inside & (tl.cumsum(counts, 0) + total < wanted)
        block += tl.sum(short.to(tl.int32), 0)
        earlier += tl.sum(tl.where(short, counts, 0), 0)
        total += tl.sum(counts, 0)
    block = tl.minimum(block, first_block + block_count - 1)
    layer = tl.load(blocks + 2 * block)
    row = layers + 4 * layer
    offsets = tl.load(blocks + 2 * block + 1) + tl.arange(0, BLOCK)
    inside = offsets < tl.load(row)
    place = _place(offsets, tl.load(row + 1), tl.load(row + 2), PERMUTED)
    equal = (inside & (_bits(tl.load(addresses + layer), place, inside, BITS) == threshold)).to(tl.int32)
    chosen = (equal == 1) & (tl.cumsum(equal, 0) + earlier == wanted)
    position = tl.sum(tl.where(chosen, offsets, 0), 0)
    # Keys that are no numbers have no order: nothing is kept of them.
    nothing = (wanted <= 0) | (tl.load(odd + group) != 0)
    each = first_layer + tl.arange(0, LAYERS)
    own = each < first_layer + layer_count
    ends = tl.where(each < layer, 0x7FFFFFFF, tl.where(each == layer, position, -1))
    tl.store(last + each, tl.where(nothing, -1, ends), mask=own)
    tl.store(thresholds + each, tl.where(nothing, 0x7FFFFFFF, threshold) + tl.zeros_like(each), mask=own)


@triton.jit
def clear(
    weights, bits, blocks, layers,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Set the weights to exactly +0 where the bits of their masks are 0; both lie in memory in the same order."""
    block = tl.program_id(0)
    layer = tl.load(blocks + 2 * block)
    place = tl.load(blocks + 2 * block + 1) + tl.arange(0, BLOCK)
    inside = place < tl.load(layers + 4 * layer)
    if WIDTH == 32:
        at = tl.load(weights + layer).to(tl.pointer_type(tl.int32)) + place
        mask = tl.load(tl.load(bits + layer).to(tl.pointer_type(tl.int32)) + place, mask=inside, other=0)
    else:
        at = tl.load(weights + layer).to(tl.pointer_type(tl.int16)) + place
        mask = tl.load(tl.load(bits + layer).to(tl.pointer_type(tl.int16)) + place, mask=inside, other=0)
    tl.store(at, tl.load(at, mask=inside, other=0) & mask, mask=inside)


@triton.jit
def keep(
    addresses, weights, blocks, layers, starts, thresholds, last, out,
    BITS: tl.constexpr, WEIGHT: tl.constexpr, PERMUTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is kept: the masks, or where WEIGHT is the number of their bits the weights, exactly +0 elsewhere."""
    block = tl.program_id(0)
    layer = tl.load(blocks + 2 * block)
    row = layers + 4 * layer
    place = tl.load(blocks + 2 * block + 1) + tl.arange(0, BLOCK)
    inside = place < tl.load(row)
    key = _bits(tl.load(addresses + layer), place, inside, BITS)
    position = _position(place, tl.load(row + 1), tl.load(row + 2), PERMUTED)
    threshold = tl.load(thresholds + layer)
    kept = inside & ((key > threshold) | ((key == threshold) & (position <= tl.load(last + layer))))
    to = out + tl.load(starts + layer) + place
    if WEIGHT == 0:
        tl.store(to, kept, mask=inside)
    elif WEIGHT == 32:
        tl.store(
            to, tl.load(tl.load(weights + layer).to(tl.pointer_type(tl.int32)) + place, mask=kept, other=0), inside
        )
    else:
        tl.store(
            to, tl.load(tl.load(weights + layer).to(tl.pointer_type(tl.int16)) + place, mask=kept, other=0), inside
        )
