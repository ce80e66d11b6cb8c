from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from networks import Residual, Tied, perceptron
from processes import run_python
from ticket_bytes import full_ticket, rewrite

import supermask
from supermask import Masks, Ticket, TicketError, make_state
from supermask.tickets.header import FORMAT
from supermask.weights.fitting import state_of

pytestmark = pytest.mark.quick


@pytest.fixture
def ticket() -> Ticket:
    model = Residual()
    draws = supermask.initialize(model, "kaiming-normal", seed=3)
    start = {n: t.clone() for n, t in model.state_dict().items()}
    masks = supermask.prune(model, 0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.norm.running_mean.add_(0.5)
        model.norm.num_batches_tracked.add_(7)
    states = {"start": make_state(start, masks, draws), "final": make_state(model.state_dict(), masks, draws)}
    return Ticket(masks, states, {"method": "imp", "level": 3, "nested": {"list": [1, 2.5, None, "ä"]}})


def test_save_and_load_give_the_same_ticket(ticket, tmp_path):
    path = tmp_path / "t.safetensors"
    supermask.save(ticket, path)
    assert supermask.load(path) == ticket
    assert supermask.load(path.read_bytes()) == ticket
    assert supermask.pack(supermask.load(path)) == path.read_bytes() == supermask.pack(ticket)
    again = supermask.load(path)
    assert again.meta == ticket.meta
    for state in ("start", "final"):
        one, other = again.state_dict(state), ticket.state_dict(state)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)


def test_the_start_is_drawn_and_the_survivors_are_stored(ticket):
    assert set(ticket.states["start"].drawn) >= {"stem.weight", "block.0.weight", "head.weight", "head.bias"}
    assert set(ticket.states["start"].stored) == {"norm.num_batches_tracked"}
    assert "stem.weight" in ticket.states["final"].stored
    size = len(supermask.pack(ticket))
    dense = sum(t.numel() * 4 for t in ticket.state_dict().values())
    with_dense_masks = Ticket(
        Masks({n: torch.ones_like(m) for n, m in ticket.masks.items()}), ticket.states, ticket.meta
    )
    assert size < dense + 4000
    assert size < len(supermask.pack(with_dense_masks))


def test_apply_to_a_model_of_ones_own(ticket):
    model = ticket.apply_to(Residual())
    for name, mask in ticket.masks.items():
        assert not model.get_parameter(name).detach()[~mask].any()
    assert int(model.norm.num_batches_tracked) == 7
    supermask.hold(model, ticket.masks)
    supermask.check(model)
    assert torch.equal(
        ticket.apply_to(torch.compile(Residual())).get_parameter("_orig_mod.stem.weight"), model.stem.weight
    )


def test_apply_to_a_tied_model():
    model = Tied()
    masks = supermask.prune(model, 0.5)
    ticket = Ticket(masks, {"final": make_state(model.state_dict(), masks)})
    again = supermask.unpack(supermask.pack(ticket)).apply_to(Tied())
    assert torch.equal(again.head.weight, torch.where(masks["embedding.weight"], model.head.weight, 0))


def test_the_first_misfits_are_named_and_the_rest_counted(ticket):
    class Other(Residual):
        def __init__(self):
            super().__init__()
            self.haed = self.head
            del self.head
            self.extra = torch.nn.Linear(2, 2)
            self.stem = torch.nn.Conv2d(1, 9, 3)

    with pytest.raises(ValueError) as caught:
        ticket.apply_to(Other())
    for part in (
        "no parameter 'head.weight'; did you mean 'haed.weight'?", "stem.weight has shape [9, 1, 3, 3]",
        "the ticket has no tensor 'stem.bias'", "; and 3 more of 8",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_model_needs_a_known_architecture(ticket):
    with pytest.raises(ValueError, match=r"names no architecture.*apply_to"):
        ticket.model()
    named = Ticket(ticket.masks, ticket.states, {"architecture": {"name": "lenet-300", "arguments": {}}})
    with pytest.raises(ValueError, match="did you mean 'lenet-300-100'"):
        named.model()
    code = Ticket(ticket.masks, ticket.states, {"architecture": {"name": "os:system", "arguments": {}}})
    with pytest.raises(ValueError, match="not known here by name"):
        code.model()
    with pytest.raises(ValueError, match="no state 'finale'; did you mean 'final'"):
        ticket.state_dict("finale")


def test_a_wrong_draw_is_found(ticket):
    state = ticket.states["start"]
    wrong = {**state.drawn, "stem.weight": supermask.Draw("kaiming-normal", 4, 1.0, (8, 1, 3, 3))}
    broken = Ticket(ticket.masks, {"start": supermask.State(state.stored, wrong, state.fingerprint)})
    with pytest.raises(TicketError, match="start weights are not those that were saved"):
        broken.state_dict("start")


@pytest.mark.parametrize("length", [0, 5, 8, 100, 1000, -1])
def test_truncated_files(ticket, length):
    with pytest.raises(TicketError):
        supermask.unpack(supermask.pack(ticket)[:length])


def test_every_flipped_byte_is_found_or_harmless(ticket):
    data = supermask.pack(ticket)
    for position in range(0, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 0x10
        try:
            found = supermask.unpack(bytes(broken))
        except TicketError:
            continue
        assert found == ticket, position


def test_what_is_no_ticket(tmp_path, ticket):
    plain = safetensors.torch.save({"a": torch.zeros(3)})
    for data in (plain, b"PK\x03\x04" * 10, b"\0" * 64, json.dumps({}).encode() * 10):
        with pytest.raises(TicketError, match="not a"):
            supermask.unpack(data)
    with pytest.raises(TicketError, match="is a directory"):
        supermask.load(tmp_path)
    supermask.save(ticket, tmp_path / "ticket.safetensors")
    with pytest.raises(TicketError, match=r"did you mean .*ticket.safetensors"):
        supermask.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        supermask.load(tmp_path / "none")


def test_newer_format_and_wrong_descriptions(ticket):
    data = supermask.pack(ticket)

    def newer(description, outer):
        description["format"] = FORMAT + 1

    with pytest.raises(TicketError, match=f"format {FORMAT + 1}, this version reads up to {FORMAT}: upgrade"):
        supermask.unpack(rewrite(data, newer))


def edit(*path, **values):
    """A change of the description at a path of keys."""

    def change(description, outer):
        for key in path:
            description = description[key]
        description.update(values)

    return change


WRONG = {
    "surprise: Extra inputs": edit(surprise=1),
    "format: expected 1": edit(format=0),
    "the mask of 'head.weight'": edit("tensors", "head.weight", "mask", kept=1),
    "weights, more than 61,370,000: if you trust it": edit("tensors", "stem.weight", shape=[2**60, 2**60]),
    "tensors.stem.weight.shape.0: Input should be greater": edit("tensors", "stem.weight", shape=[-8, -9]),
    "unknown init 'os.system'": lambda d, o: d["states"]["start"]["drawn"][0].update(init="os.system"),
    "unknown state 'middle'": lambda d, o: d["states"].update(middle=d["states"]["start"]),
    "'norm.weight' is there twice": lambda d, o: d["states"]["start"]["drawn"][0]["names"].append("norm.weight"),
    "set 'task-1': 'stem.weight' has no shape": lambda d, o: d["tensors"].pop("stem.weight"),
    "'head.bias' cannot be drawn with shape": lambda d, o: d["states"]["start"]["drawn"][0]["names"].append(
        "head.bias"
    ),
    "has signs or a gain, but is not drawn": edit("states", "final", gains={"norm.bias": 2.0}),
    "blocks of [1, 3, 3, 3] do not make up": edit("tensors", "block.0.weight", "mask", block=[1, 3, 3, 3]),
    "'final/norm.bias' is not there": lambda d, o: o.update({"final/other": o.pop("final/norm.bias")}),
    "tensors that it does not describe: final/norm.bias": lambda d, o: d["states"]["final"]["stored"].pop("norm.bias"),
    "the tensor 'final/norm.bias' has 8 values, expected 9": edit("tensors", "norm.bias", shape=[9]),
    "is of type F32, expected F64": edit("states", "final", "stored", **{"norm.bias": "F64"}),
    "has an unknown type": edit("states", "final", "stored", **{"norm.bias": "F31"}),
    "has shape [2, 4], expected one axis": lambda d, o: o["final/norm.bias"].update(shape=[2, 4]),
    "expected a tensor 'bits' of type U8": lambda d, o: o["bits"].update(dtype="I8"),
    "scale: Input should be less": lambda d, o: d["states"]["start"]["drawn"][0].update(scale=1e300),
    "fingerprint: String should match": edit("states", "start", fingerprint="none"),
    "starts at byte": lambda d, o: o["final/norm.bias"].update(data_offsets=[1, 33]),
    "described wrongly": lambda d, o: o["final/norm.bias"].update(shape=[2**62]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_descriptions(message):
    data = supermask.pack(full_ticket())
    with pytest.raises(TicketError, match=re.escape(message)):
        supermask.unpack(rewrite(data, WRONG[message]))


def test_all_that_is_wrong_is_said_at_once():
    def change(description, outer):
        description["sets"]["task-1"] = {"one": {"kept": 1}, "two": {"kept": 2}}
        description["states"]["start"]["stored"]["three"] = "F31"

    with pytest.raises(TicketError) as caught:
        supermask.unpack(rewrite(supermask.pack(full_ticket()), change))
    for name in ("'one'", "'two'", "'three' has no shape", "'three' has an unknown type"):
        assert name in str(caught.value)


def test_metadata_is_json(ticket):
    for meta in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(ValueError, match="plain JSON"):
            Ticket(ticket.masks, ticket.states, meta)
    tuples = Ticket(ticket.masks, ticket.states, {"a": (1, 2), "b": {3: 4}})
    assert supermask.unpack(supermask.pack(tuples)) == tuples


def test_saving_overwrites_nothing_unasked_and_leaves_the_old_file_when_it_fails(ticket, tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    supermask.save(ticket, path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        supermask.save(ticket, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        supermask.save(ticket, path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_same_ticket_same_bytes(ticket):
    shuffled = Ticket(
        Masks(dict(reversed(list(ticket.masks.items())))),
        dict(reversed(ticket.states.items())),
        dict(reversed(ticket.meta.items())),
    )
    assert hashlib.sha256(supermask.pack(shuffled)).digest() == hashlib.sha256(supermask.pack(ticket)).digest()


def test_negative_zero_is_stored_and_not_taken_for_zero():
    model = perceptron()
    model[0].bias.data.fill_(-0.0)
    masks = supermask.prune(model, 1.0)
    ticket = supermask.unpack(supermask.pack(Ticket(masks, {"final": make_state(model.state_dict(), masks)})))
    assert torch.signbit(ticket.state_dict()["0.bias"]).all()


def test_file_permissions_are_ordinary(ticket, tmp_path):
    supermask.save(ticket, tmp_path / "a")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == Path(tmp_path / "b").stat().st_mode


def test_parameters_that_only_look_like_scores_are_kept():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)
            self.class_scores = torch.nn.Parameter(torch.randn(3))

    model = Net()
    masks = supermask.prune(model, 0.5)
    ticket = Ticket(masks, {"final": make_state(state_of(model), masks)})
    assert torch.equal(ticket.apply_to(Net()).class_scores, model.class_scores)
    supermask.learn(model, 0.5)
    assert "class_scores" in state_of(model)
    assert "fc.weight_scores" not in state_of(model)


def test_a_model_with_other_masks_is_refused(ticket):
    for put_on in (lambda m: supermask.learn(m, 0.5), lambda m: supermask.hold(m, supermask.prune(m, 0.5))):
        model = Residual()
        put_on(model)
        with pytest.raises(ValueError, match="carries other masks"):
            ticket.apply_to(model)
    model = Residual()
    supermask.hold(model, ticket.masks)
    ticket.apply_to(model)
    supermask.check(model)


def test_a_scale_given_as_a_whole_number_reads_back():
    model = perceptron()
    draws = supermask.initialize(model, "signed-constant", 0, scale=2)
    masks = supermask.prune(model, 0.5)
    ticket = Ticket(masks, {"start": make_state(model.state_dict(), masks, draws)})
    assert supermask.unpack(supermask.pack(ticket)) == ticket


class Wrapped(torch.nn.Module):
    """A user's network around the ticket's, with a head of its own."""

    def __init__(self):
        super().__init__()
        self.encoder = Residual()
        self.extra = torch.nn.Linear(2, 2)


def test_names_are_mapped(ticket):
    expected = ticket.state_dict()
    outer = torch.nn.ModuleDict({"encoder": Residual()})
    for names in ({"": "encoder."}, lambda name: f"encoder.{name}"):
        ticket.apply_to(outer, names=names)
        assert all(torch.equal(outer.state_dict()[f"encoder.{name}"], tensor) for name, tensor in expected.items())
    renamed = ticket.masks.renamed({"": "encoder."})
    assert set(renamed) == {f"encoder.{name}" for name in ticket.masks}
    supermask.hold(outer, renamed)
    supermask.check(outer)
    ticket.apply_to(outer, names={"": "encoder."})
    back = Ticket(renamed, {"final": make_state(outer.state_dict(), renamed)})
    again = back.apply_to(Residual(), names={"encoder.": ""})
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in expected.items())

    class Other(Residual):
        def __init__(self):
            super().__init__()
            self.top, self.body = self.head, self.block
            del self.head, self.block

    names = {"head.weight": "top.weight", "head.": "top.", "block.": "body."}
    other = ticket.apply_to(Other(), names=names)
    assert torch.equal(other.top.bias, expected["head.bias"])
    with pytest.raises(ValueError, match="'stem.weight' and 'head.weight' both become 'one'"):
        ticket.apply_to(Residual(), names={"stem.weight": "one", "head.weight": "one"})


def test_the_error_says_which_names_would_fit(ticket):
    with pytest.raises(ValueError, match=r"all fit with names=\{'': 'encoder.'\}"):
        ticket.apply_to(torch.nn.ModuleDict({"encoder": Residual()}))
    inner = Ticket(Masks({}), {"final": make_state({f"net.{n}": t for n, t in ticket.state_dict().items()}, Masks({}))})
    with pytest.raises(ValueError, match=r"all fit with names=\{'net.': ''\}"):
        inner.apply_to(Residual())
    with pytest.raises(ValueError, match=r"all fit with names=\{'net.': 'encoder.'\}"):
        inner.apply_to(torch.nn.ModuleDict({"encoder": Residual()}))
    linear, other = torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2)})
    same = Ticket(Masks({}), {"final": make_state(linear.state_dict(), Masks({}))})
    sequence = torch.nn.Module()
    sequence.w, sequence.b = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"names=dict\(zip\(ticket.state_dict\(\), model.state_dict\(\)\)\)"):
        same.apply_to(sequence)
    same.apply_to(sequence, names=dict(zip(same.state_dict(), sequence.state_dict(), strict=True)))
    assert torch.equal(sequence.w, linear[0].weight)
    assert same.fit(other).hint == "; all fit with names={'0.': 'a.'}"


def test_what_fits_is_loaded_on_request_and_the_rest_is_told(ticket):
    model = Wrapped()
    before = model.extra.weight.clone()
    report = ticket.fit(model, names={"": "encoder.", "head.": None})
    assert not report
    assert set(report.left_out) == {"head.weight", "head.bias"}
    assert set(report.missing) == {"encoder.head.weight", "encoder.head.bias", "extra.weight", "extra.bias"}
    assert "the ticket has no tensor 'extra.weight'" in str(report)
    head = model.encoder.head.weight.clone()
    ticket.apply_to(model, names={"": "encoder.", "head.": None}, partial=True)
    assert torch.equal(model.extra.weight, before)
    assert torch.equal(model.encoder.head.weight, head)
    assert torch.equal(model.encoder.stem.weight, ticket.state_dict()["stem.weight"])
    with pytest.raises(ValueError, match="does not fit"):
        ticket.apply_to(torch.nn.Linear(2, 2), partial=True)
    fits = ticket.fit(Residual())
    assert fits
    assert str(fits) == f"all {len(ticket.state_dict())} tensors fit"


def test_differences_are_all_said(ticket):
    assert not ticket.diff(ticket)
    assert str(ticket.diff(ticket)) == "no difference"
    masks = Masks({**ticket.masks, "stem.weight": ~ticket.masks["stem.weight"]})
    tensors = ticket.state_dict()
    tensors["head.bias"] = tensors["head.bias"] + 1
    meta = {**ticket.meta, "level": 4, "nested": {"list": [1], "new": None}}
    states = {"final": make_state(tensors, masks)}
    other = Ticket(masks, states, meta, {"one": ticket.masks}, {"stem.weight": masks["stem.weight"].to(torch.uint8)})
    found = ticket.diff(other)
    assert found.meta.keys() == {"level", "nested.list", "nested.new"}
    assert found.meta["level"] == (3, 4)
    assert found.states == {"start": ("only in the first",), "final": ("stem.weight", "head.bias")}
    assert found.levels == ("stem.weight",)
    own = [row for row in found.masks if not row.set]
    assert [row.name for row in own] == ["stem.weight"]
    kept, size = int(ticket.masks["stem.weight"].sum()), ticket.masks["stem.weight"].numel()
    assert own[0][2:6] == (kept, size - kept, 0, 0.0)
    shared = kept * (size - kept) / size
    assert own[0].by_chance == pytest.approx(shared / (size - shared))
    assert {row.name for row in found.masks if row.set == "one"} == set(ticket.masks)
    text = str(found)
    for part in (
        "level: 3 | 4",
        "mask of stem.weight: ",
        "mask of one: stem.weight: only in the second",
        "final weights: ",
    ):
        assert part in text
    assert ticket != other
    assert ticket.overlap(other) == pytest.approx(ticket.masks.overlap(other.masks))


def test_a_file_and_bytes_of_all_kinds_are_read(ticket, tmp_path):
    data = supermask.pack(ticket)
    (tmp_path / "t").write_bytes(data)
    with (tmp_path / "t").open("rb") as file:
        assert supermask.load(file) == ticket
    for given in (bytearray(data), memoryview(data), io.BytesIO(data), str(tmp_path / "t"), tmp_path / "t"):
        assert supermask.load(given) == ticket


def test_too_many_weights_are_refused(ticket):
    data = supermask.pack(ticket)
    weights = sum(tensor.numel() for tensor in ticket.state_dict().values())
    assert supermask.load(data, max_weights=weights) == ticket
    with pytest.raises(TicketError, match=rf"supermask.load\(..., max_weights={weights}\)"):
        supermask.load(data, max_weights=weights - 1)


def test_what_cannot_be_read(ticket, tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(TicketError, match="empty: not a whole ticket file: it has 0 bytes"):
        supermask.load(tmp_path / "empty")
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(TicketError, match=r"supermask.foreign.load reads other programs' files"):
        supermask.load(tmp_path / "model.pt")
    (tmp_path / "more").write_bytes(supermask.pack(ticket) + b"x")
    with pytest.raises(TicketError, match="there is more behind"):
        supermask.load(tmp_path / "more")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users and groups on this system")
def test_no_permission(ticket, tmp_path, forkserver_with_torch):
    path, folder = tmp_path / "ticket", tmp_path / "folder"
    supermask.save(ticket, path)
    folder.mkdir()
    shutil.chown(path, 65534)
    path.chmod(0), folder.chmod(0o500)
    program = (
        "import os, sys, supermask\n"
        "ticket = supermask.load(sys.argv[3])\n"
        "if os.geteuid() == 0: os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "for call in (lambda: supermask.load(sys.argv[1]), lambda: supermask.save(ticket, sys.argv[2])):\n"
        "    try: call()\n"
        "    except PermissionError: print('refused')\n"
    )
    supermask.save(ticket, tmp_path / "readable")
    answer = run_python(program, path, folder / "new", tmp_path / "readable")
    assert answer.stdout.split() == ["refused", "refused"], answer.stderr
    assert not list(folder.iterdir())


def test_a_full_disk_leaves_the_old_file(ticket, tmp_path, forkserver_with_torch):
    """A file size limit stops the write in its middle, as a full disk does."""
    path = tmp_path / "t"
    supermask.save(ticket, path)
    before = path.read_bytes()
    program = (
        "import resource, signal, sys, supermask\n"
        "ticket = supermask.load(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "supermask.save(ticket, sys.argv[1], overwrite=True)\n"
    )
    answer = run_python(program, path)
    assert "File too large" in answer.stderr
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["t"]
