"""The ticket file is what `docs/ticket_format.md` says: read by the page's own code, which knows no torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ticket_bytes import blocks, drawn_ticket, full_ticket, page, read_by_page, take_apart, tasks_ticket

import supermask
from supermask import Draw, Masks, Ticket, make_state
from supermask.tickets import bit_coding as coding
from supermask.tickets.lazy import TORCH_DTYPES
from supermask.weights.inits import INITS

pytestmark = pytest.mark.quick


def code_lines(block: str) -> int:
    return sum(1 for line in block.splitlines() if line.strip())


def test_the_reader_is_short_and_needs_numpy_alone():
    reader, draws = blocks()
    assert code_lines(reader) <= 60
    assert code_lines(draws) <= 80
    imports = {line.split()[1] for line in (reader + draws).splitlines() if line.startswith(("import", "from"))}
    assert imports == {"hashlib", "io", "json", "math", "struct", "numpy"} - {"io"}


def same(one: np.ndarray, other: torch.Tensor) -> bool:
    return (
        one.shape == tuple(other.shape)
        and one.tobytes() == other.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    )


def assert_read_alike(ticket: Ticket) -> None:
    data = supermask.pack(ticket)
    found, loaded = read_by_page(data), supermask.load(data)
    assert loaded == ticket
    own = Masks({}) if ticket.tasks else loaded.masks
    for masks, expected in ((found["masks"], own), (found["levels"], loaded.levels)):
        assert list(masks) == list(expected)
        assert all(same(masks[name], expected[name]) for name in masks)
    assert list(found["sets"]) == list(loaded.sets)
    for which, masks in found["sets"].items():
        assert all(same(masks[name], loaded.sets[which][name]) for name in loaded.sets[which])
    assert set(found["states"]) == set(loaded.states)
    for state, tensors in found["states"].items():
        expected = loaded.state_dict(state)
        assert set(tensors) == set(expected)
        for name, tensor in tensors.items():
            assert same(tensor, expected[name]), (state, name)
    assert supermask.pack(loaded) == data


def test_the_page_reads_all_that_a_file_can_hold():
    ticket = full_ticket()
    assert_read_alike(ticket)
    described = take_apart(supermask.pack(ticket))[1]
    masks = {name: tensor["mask"] for name, tensor in described["tensors"].items() if "mask" in tensor}
    assert masks["block.0.weight"]["block"] == [1, 4, 3, 3]
    assert len(masks["stem.weight"]["levels"]) == 2
    assert any("rice" not in entry for entry in masks.values())
    assert described["states"]["final"]["signs"].keys() == {"stem.weight"}
    assert [name for name, entry in masks.items() if "uncounted" in entry] == ["block.0.bias"]
    assert list(described["tensors"]) == list(ticket.states["final"].names)


@pytest.mark.parametrize("drawn", [True, False])
def test_the_page_reads_several_tasks(drawn):
    ticket = tasks_ticket(drawn)
    assert_read_alike(ticket)
    found = read_by_page(supermask.pack(ticket))
    assert list(found["tasks"]) == list(ticket.tasks) == ["0", "1", "two"]
    for task, states in found["tasks"].items():
        for state, tensors in states.items():
            expected = ticket.task(task).state_dict(state)
            assert set(tensors) == set(expected)
            assert all(same(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("init", INITS)
def test_the_page_draws_every_init(init):
    shape = (37, 11, 3)
    expected = Draw(init, 9, 0.8, shape).tensor("layer.weight")
    assert same(page()["draw"](init, shape, 9, "layer.weight", 0.8), expected)


@pytest.mark.parametrize("density", [0.0, 1.0, 0.9, 0.5, 0.38, 0.1, 0.036, 0.001])
def test_the_page_reads_every_density(density):
    assert_read_alike(drawn_ticket(density=density, shape=(50, 81)))


# Shapes of tensors and, for each, what its mask keeps: all that can leave a tensor without a stored value.
NOTHING_LEFT = {
    "some kept": ((4, 6), lambda mask: mask),
    "none kept": ((4, 6), torch.zeros_like),
    "all kept": ((4, 6), torch.ones_like),
    "a scalar kept": ((), torch.ones_like),
    "a scalar dropped": ((), torch.zeros_like),
    "no entry": ((0,), lambda mask: mask),
    "no entry of three axes": ((3, 0, 2), torch.zeros_like),
    "no mask": ((4, 6), None),
    "no mask and no entry": ((0, 5), None),
}


@pytest.mark.parametrize("uncounted", [False, True])
@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_every_type_reads_back_whatever_is_left_of_it(dtype, uncounted):
    tensors, masks = {}, {}
    for name, (shape, mask) in NOTHING_LEFT.items():
        numbers = torch.arange(math.prod(shape)).reshape(shape)
        tensors[name] = (numbers % 5 + 1).to(dtype)
        if mask is not None:
            masks[name] = mask(numbers % 3 > 0)
    whole = Masks(masks, masks if uncounted else ())
    ticket = Ticket(whole, {"final": make_state(tensors, whole)})
    data = supermask.pack(ticket)
    again = supermask.load(data)
    assert again == ticket
    assert again.masks.uncounted == whole.uncounted
    assert supermask.pack(again) == data
    page = read_by_page(data)["states"]["final"]
    for name, tensor in again.state_dict().items():
        kept = masks.get(name, torch.ones(tensor.shape, dtype=torch.bool))
        assert tensor.dtype == dtype
        wide = torch.complex128 if dtype.is_complex else torch.float64
        assert torch.equal(tensor.to(wide), torch.where(kept, tensors[name].to(wide), 0.0)), name
        assert same(page[name], tensor.float() if dtype == torch.bfloat16 else tensor), name


def test_a_network_whose_layer_keeps_nothing_reads_back():
    model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3)).bfloat16()
    masks = supermask.prune(model, 0.3)
    assert masks.kept_per_tensor["2.weight"] == 0
    ticket = Ticket(masks, {"final": make_state(model.state_dict(), masks)})
    assert supermask.load(supermask.pack(ticket)) == ticket


# Not in every PyTorch that is supported.
POWER_OF_TWO = getattr(torch, "float8_e8m0fnu", None)
UNKNOWN_TYPES = [torch.complex128, torch.complex32, *filter(None, [POWER_OF_TWO])]


@pytest.mark.parametrize("shape", [(3,), (0,)], ids=str)
@pytest.mark.parametrize("dtype", UNKNOWN_TYPES, ids=str)
def test_a_type_that_files_do_not_know_is_named(dtype, shape):
    ticket = Ticket(Masks({}), {"final": make_state({"w": torch.zeros(shape).to(dtype)}, Masks({}))})
    with pytest.raises(ValueError, match=rf"w is of type {dtype}, expected one of F64"):
        supermask.pack(ticket)


@pytest.mark.skipif(POWER_OF_TWO is None, reason="a PyTorch without this type")
def test_a_type_without_a_zero_carries_no_mask():
    tensors, masks = {"w": torch.ones(2, 2).to(POWER_OF_TWO)}, Masks({"w": torch.eye(2) > 0})
    with pytest.raises(ValueError, match="w is of type float8_e8m0fnu, which has no number 0"):
        make_state(tensors, masks)


def test_the_safetensors_library_reads_the_file():
    ticket = full_ticket()
    tensors = safetensors.torch.load(supermask.pack(ticket))
    stored = {f"{state}/{name}" for state, source in ticket.states.items() for name in source.stored}
    assert set(tensors) == {"bits"} | stored
    survivors = ticket.state_dict()["block.0.weight"][ticket.masks["block.0.weight"]]
    assert tensors["final/block.0.weight"].dtype == torch.bfloat16
    assert torch.equal(tensors["final/block.0.weight"].float(), survivors)


def entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


@pytest.mark.parametrize("density", [0.9, 0.5, 0.3, 0.1, 0.036, 0.01, 0.001])
@pytest.mark.parametrize("size", [266_200, 2_400_000])
def test_random_masks_are_near_their_entropy(size, density):
    bits = np.random.default_rng(1).random(size) < density
    code, data = coding.encode(bits)
    assert data.size <= 1.05 * size * entropy(float(bits.mean())) / 8
    coding.check(code, data)
    assert np.array_equal(coding.decode(code, data), bits)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.booleans(), max_size=200), st.integers(1, 40), st.integers(0, 300))
def test_codings_read_back(bits, repeats, zeros):
    flat = np.concatenate([np.repeat(np.array(bits, bool), repeats), np.zeros(zeros, bool)])
    code, data = coding.encode(flat)
    assert code.size == data.size <= (flat.size + 7) // 8
    coding.check(code, data)
    assert np.array_equal(coding.decode(code, data), flat)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.lists(st.integers(1, 4), min_size=4, max_size=4), st.data()
)
def test_blocks_are_the_largest(units, sizes, data):
    block = tuple(sizes[: len(units)])
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=math.prod(units), max_size=math.prod(units))))
    mask = coding.grow(chosen.reshape(units), block)
    found = coding.find_block(mask)
    assert all(size % part == 0 for size, part in zip(found, block, strict=True))
    assert np.array_equal(coding.grow(coding.shrink(mask, found), found), mask)
    # No larger block: along every axis, the next multiple that divides the axis breaks the mask.
    for axis, length in enumerate(mask.shape):
        for larger in range(found[axis] + 1, length + 1):
            if length % larger == 0 and larger % found[axis] == 0:
                wider = (*found[:axis], larger, *found[axis + 1 :])
                assert not np.array_equal(coding.grow(coding.shrink(mask, wider), wider), mask)


def test_large_masks_come_in_pieces():
    """Positions, gaps and blocks across the ends of the pieces in which they are worked on."""
    for density in (0.3, 0.01, 0.0001):
        bits = np.random.default_rng(2).random(3 * (1 << 18) + 17) < density
        bits[(1 << 18) - 1 : (1 << 18) + 1] = True
        code, data = coding.encode(bits)
        assert np.array_equal(coding.decode(code, data), bits)
    rows = np.random.default_rng(3).random((2000, 1)) < 0.5
    rows[600:1800] = True
    wide = np.broadcast_to(np.repeat(rows, 2, 0), (4000, 500)).copy()
    assert coding.find_block(wide) == (2, 500)


def bits_of(ticket: Ticket) -> int:
    return take_apart(supermask.pack(ticket))[0]["bits"]["shape"][0]


def test_structured_masks_cost_a_bit_for_each_unit():
    kept = torch.arange(64) % 3 > 0
    for mask in (
        kept[:, None, None, None].expand(64, 32, 3, 3),
        kept[None, :, None, None].expand(32, 64, 3, 3),
        kept.reshape(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1),
    ):
        ticket = Ticket(Masks({"w": mask.clone()}), {})
        assert bits_of(ticket) == 8
        assert supermask.load(supermask.pack(ticket)) == ticket


def test_levels_are_a_chain():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 5, (40, 30), generator=generator).to(torch.uint8)
    ticket = Ticket(Masks({"w": levels > 0, "v": torch.ones(3, dtype=torch.bool)}), {}, levels={"w": levels})
    again = supermask.load(supermask.pack(ticket))
    assert torch.equal(again.levels["w"], levels)
    for level in (1, 2, 3, 4):
        masks = again.at_level(level)
        assert torch.equal(masks["w"], levels >= level)
        assert masks["v"].all()
    for level in (0, 5):
        with pytest.raises(ValueError, match="levels 1 to 4"):
            again.at_level(level)
    with pytest.raises(ValueError, match="no levels"):
        Ticket(again.masks, {}).at_level(1)
    wrong = Ticket(again.masks, {}, levels={"w": levels + 1})
    with pytest.raises(ValueError, match="the levels of w"):
        supermask.pack(wrong)


def test_masks_are_decoded_when_read(monkeypatch):
    data = supermask.pack(full_ticket())
    calls = []
    decode = coding.decode
    monkeypatch.setattr(coding, "decode", lambda *args: calls.append(1) or decode(*args))
    ticket = supermask.load(data)
    assert ticket.density == pytest.approx(full_ticket().density)
    assert len(ticket.masks.report()) == len(ticket.masks) - 1
    assert not calls
    assert ticket.masks["head.weight"] is ticket.masks["head.weight"]
    assert len(calls) == 1


def test_a_file_of_a_seed_and_a_bit_per_weight_is_small():
    size = len(supermask.pack(drawn_ticket()))
    assert size <= 300 * 784 / 8 + 1000


def test_sets_must_fit():
    ticket = full_ticket()
    wrong = Ticket(ticket.masks, {}, {}, {"other": Masks({"stem.weight": torch.ones(2, dtype=torch.bool)})})
    with pytest.raises(ValueError, match=r"set 'other': stem.weight has shape \[2\], elsewhere"):
        supermask.pack(wrong)


def test_rounding_on_request():
    torch.manual_seed(0)
    tensors = {"w": torch.randn(50, 40), "b": torch.randn(50), "n": torch.tensor(3)}
    masks = Masks({"w": torch.rand(50, 40) < 0.3})
    sizes = {}
    for dtype in (None, torch.bfloat16, torch.float16):
        state = make_state(tensors, masks, dtype=dtype)
        data = supermask.pack(Ticket(masks, {"final": state}))
        sizes[dtype] = len(data)
        got = supermask.load(data).state_dict()
        assert all(got[name].dtype == tensors[name].dtype for name in tensors)
        kept = tensors["w"] if dtype is None else tensors["w"].to(dtype).float()
        assert torch.equal(got["w"], kept.masked_fill(~masks["w"], 0))
        assert torch.equal(got["b"], tensors["b"])
    saved = 2 * masks.kept
    assert abs(sizes[None] - sizes[torch.bfloat16] - saved) < 60
    assert abs(sizes[None] - sizes[torch.float16] - saved) < 60
    with pytest.raises(
        ValueError, match=r"float16 ends at 65504, and these weights are larger: w .*bfloat16 holds them"
    ):
        make_state({"w": tensors["w"] * 1e6}, masks, dtype=torch.float16)
