"""What a file may ask for is bounded by its size, and by limits that it is told; nothing is written that is refused."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ticket_bytes import PAGE, drawn_ticket, full_ticket, put_together, rewrite

import supermask
from supermask import Draw, Masks, State, Ticket, TicketError
from supermask.tickets import container, foreign, header, strict_json
from supermask.tickets.compact_file import pack_compaction
from supermask.tickets.strict_json import parse_json
from supermask.weights.architectures import find_architecture
from ticket_search import RequestError
from ticket_search.contract.errors import nearest_hint
from ticket_search.contract.text_files import read_json, read_toml

BITS = {"bits": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
EMPTY = {"kept": 0, "rice": [0, 0]}
NAMES = ",".join(f'"n{i}":1' for i in range(10_000))
# A description or a whole header, and what is said of it.
TOO_MUCH = {
    "twice": ("{" + NAMES + ',"n9999":1}', "the name 'n9999' is there twice"),
    "values": ('{"a":[' + "[[]]," * 100_000 + "1]}", "300,00"),
    "quotes": ('{"a":' + '"",' * 400_000 + "1}", "400,00"),
    "deep": ("[" * 100_000, r"nested 100,00\d deep, at most 100 are allowed"),
    "deep and closed": ("[" * 101 + "]" * 101, r"nested 10[12] deep, at most 100"),
    "long": (" " * 10_000_001, "at most 10,000,000 are allowed"),
}


def quickly(began: float) -> None:
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("what", TOO_MUCH)
@pytest.mark.parametrize("where", ["header", "description", "meta", "compact"])
def test_too_much_is_refused_at_once(what, where, tmp_path):
    text, said = TOO_MUCH[what]
    if where == "header":
        data = struct.pack("<Q", len(text)) + text.encode()
    elif where == "compact":
        head = json.dumps({"__metadata__": {"compact": text}}).encode()
        data = struct.pack("<Q", len(head)) + head
        said = "" if what == "long" else said
    else:
        data = put_together(BITS, text if where == "description" else f'{{"format":1,"meta":{text}}}', b"")
    (tmp_path / "file").write_bytes(data)
    began = time.process_time()
    with pytest.raises(TicketError, match=said or "file"):
        supermask.load_compact(tmp_path / "file") if where == "compact" else supermask.load(data)
    quickly(began)


COUNTS = {
    "20,001 tensors": {"tensors": {f"{i}": {"shape": [1]} for i in range(20_001)}},
    "5,001 sets of masks": {"tensors": {"w": {"shape": [1]}}, "sets": {f"{i}": {"w": EMPTY} for i in range(5_001)}},
    "40,800 masks, levels and signs": {
        "tensors": {f"{i}": {"shape": [0], "mask": {"kept": 0, "levels": [{"kept": 0}] * 254}} for i in range(160)}
    },
    "60,000 values are not what is expected": {"tensors": dict.fromkeys(map(str, range(60_000)), 1)},
}


@pytest.mark.parametrize("said", COUNTS)
def test_there_are_no_more_things_than_can_be_read(said):
    data = put_together(BITS, COUNTS[said], b"")
    began = time.process_time()
    with pytest.raises(TicketError, match=said):
        supermask.load(data)
    quickly(began)


def test_the_limits_are_those_of_the_page():
    text = PAGE.read_text()
    for limit in (
        strict_json.LONGEST, strict_json.MOST_VALUES, container.MOST_TENSORS, header.MOST_TENSORS, header.MOST_SETS,
        header.MOST_VECTORS, header.FREE_WEIGHTS, header.WEIGHTS_PER_BYTE, header.MAX_WEIGHTS,
    ):  # fmt: skip
        assert f"{limit:,}" in text
    assert f"within one another | {strict_json.DEEPEST} |" in text


def test_a_network_of_ten_thousand_tensors_is_loaded_at_once():
    names = [f"layers.{i}.attention.weight" for i in range(10_000)]
    drawn = {"init": "kaiming-normal", "seed": 0, "scale": 1.0, "names": names}
    mask = {"shape": [3, 4], "mask": {"kept": 4}}
    start = {"fingerprint": "0" * 63 + "1", "drawn": [drawn]}
    bits = {"bits": {"dtype": "U8", "shape": [20_000], "data_offsets": [0, 20_000]}}
    data = put_together(bits, {"tensors": dict.fromkeys(names, mask), "states": {"start": start}}, b"\x0f\0" * 10_000)
    began = time.process_time()
    loaded = supermask.load(data)
    quickly(began)
    assert len(loaded.masks) == 10_000 and loaded.masks[names[-1]].sum() == 4


@pytest.mark.parametrize("nested", [40, 98, 200])
def test_what_is_written_can_be_read(nested):
    meta: Any = []
    for _ in range(nested):
        meta = [meta]
    ticket = Ticket(drawn_ticket().masks, {}, {"deep": meta})
    if nested == 200:
        with pytest.raises(ValueError, match="cannot be written: .*nested 20. deep, at most 100"):
            supermask.pack(ticket)
    else:
        assert nested == 98 or supermask.unpack(supermask.pack(ticket)).meta == {"deep": meta}


@pytest.mark.parametrize(
    "meta", [{"a": list(range(300_000))}, {"a": "x" * 10_000_001}, {"a": "\ud800"}], ids=["many", "long", "no text"]
)
def test_what_could_not_be_read_is_not_written(meta, tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        supermask.save(Ticket(drawn_ticket().masks, {}, meta), tmp_path / "ticket.safetensors")
    assert not list(tmp_path.iterdir())


FORGED = {
    "shape": lambda d, o: d["tensors"]["norm.bias"].update(shape=[2 * 10**9]),
    "axis of nothing": lambda d, o: d["tensors"]["norm.bias"].update(shape=[0, 2 * 10**9]),
    "sets": lambda d, o: (
        d["tensors"].update(big={"shape": [30_000_000]}),
        d["sets"].update({f"{i}": {"big": EMPTY} for i in range(40)}),
    ),
}


@pytest.mark.parametrize("forge", FORGED)
def test_a_small_file_describes_no_large_network(forge):
    data = rewrite(supermask.pack(full_ticket()), FORGED[forge])
    most = 25_000_000 + 10_000 * len(data)
    with pytest.raises(TicketError, match=rf"more than {most:,}: if you trust it, supermask.load\(..., max_weights="):
        supermask.load(data)


def test_a_ticket_of_drawn_weights_may_be_of_a_large_network(tmp_path):
    shapes = {f"layer{i}.weight": (5000, 50) for i in range(200)}  # 50 million
    drawn = {name: Draw("kaiming-normal", 0, 1.0, shape) for name, shape in shapes.items()}
    ticket = Ticket(Masks({}), {"start": State({}, drawn, "0" * 63 + "1")})
    supermask.save(ticket, tmp_path / "t")
    assert supermask.load(tmp_path / "t").states["start"].drawn == drawn
    with pytest.raises(TicketError, match="more than 49,999,999"):
        supermask.load(tmp_path / "t", max_weights=49_999_999)
    assert header.most_weights(10**9) == header.MAX_WEIGHTS


ARGUMENTS: list[Any] = [
    {"input_shape": [1, 8, 8], "width": 1e5}, {"input_shape": [2**20, 2**20]}, {"input_shape": [-1, 8]}, {"classes": -1},
    {"classes": 10**12}, {"classes": "ten"}, {"nothing": 1}, [1], 7, {"input_shape": "abc"}, {"input_shape": 7},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=map(str, ARGUMENTS))
def test_arguments_of_a_file_build_no_other_network(arguments, tmp_path):
    net = find_architecture("lenet-300-100")(input_shape=(1, 8, 8), classes=10)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=torch.zeros(2, 1, 8, 8))
    architecture = {"name": "lenet-300-100", "arguments": arguments}
    found = supermask.shrink(net, masks, torch.zeros(2, 1, 8, 8))
    (tmp_path / "compact").write_bytes(pack_compaction(found, architecture))
    state = supermask.make_state(net.state_dict(), masks)
    ticket = Ticket(masks, {"final": state}, {"architecture": architecture})
    before = set(map(id, torch.nn.modules.module._global_parameter_registration_hooks.values()))
    for load in (lambda: supermask.load_compact(tmp_path / "compact"), ticket.model):
        began = time.process_time()
        with pytest.raises(ValueError, match="arguments do not fit its model"):
            load()
        quickly(began)
    assert set(map(id, torch.nn.modules.module._global_parameter_registration_hooks.values())) == before
    if isinstance(arguments, dict) and "width" in arguments:
        with pytest.raises(TicketError, match=r"more than [\d,]+ weights: if you trust the file, .*max_weights=N"):
            supermask.load_compact(tmp_path / "compact")


@pytest.mark.parametrize("shape", [[4, 16], [2**40, 1], [-1, 64], [64, 1, 1, 1, 1]], ids=str)
def test_a_wrong_input_shape_is_an_error_of_the_ticket(shape):
    def build(input_shape, classes):
        return torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1), torch.nn.Conv2d(2, classes, 1))

    net = build([4, 8, 8], 3)
    masks = Masks({"0.weight": torch.tensor([True, False])[:, None, None, None].expand(2, 4, 1, 1).clone()})
    meta = {"architecture": {"name": "theirs", "arguments": {"input_shape": shape, "classes": 3}}}
    ticket = Ticket(masks, {"final": supermask.make_state(net.state_dict(), masks)}, meta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("supermask.tickets.ticket.find_architecture", lambda name: build)
        with pytest.raises(ValueError, match="input_shape"):
            ticket.compact()


def bomb(value: Any, how: int) -> bytes:
    plain, out = io.BytesIO(), io.BytesIO()
    torch.save(value, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), how)
    return out.getvalue()


def test_checkpoints_that_grow_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    for value, said in (
        ({"w": torch.zeros(1).expand(10**10)}, "which it does not hold, more than"),
        (
            {"w": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**10,))},
            "which it does not hold, more than",
        ),
        ({"w": torch.zeros(2, 2, device="meta")}, "meta device"),
    ):
        torch.save(value, path)
        with pytest.raises(ValueError, match=said):
            foreign.load(path)
    path.write_bytes(bomb({"w": torch.zeros(10**6)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="its parts are compressed"):
        foreign.load(path)
    torch.save({"w": torch.zeros(2), "a": bytearray(b"x")}, path)
    with pytest.raises(ValueError, match="bytearray"):
        foreign.load(path)
    torch.save({"w": torch.zeros(2), "a": bytearray(b"x")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="bytearray"):
        foreign.load(path)


TEXTS = {
    "a.toml": ["a = " + "[" * 50_000, "[" + "a." * 40_000 + "a]", "a." * 40_000 + "a = 1", "[" + '"a b".' * 101 + "a]",
               "#" * 100_001, "a = {" + "a={" * 5000, "\n".join(["[a.b.c]" * 2]), "\0", "\ufeffa = 1"],
    "a.json": ["[" * 100_000, '{"a": ' * 101 + "1" + "}" * 101, '{"a": 1, "a": 2}', '{"a": "\\ud800"}', "[]", "", "\0",
               '{"a": [' + "1," * 300_000 + "1]}"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in TEXTS for number in range(len(TEXTS[name]))])
def test_strange_toml_and_json_is_an_error_of_ours(name, number, tmp_path):
    (tmp_path / name).write_text(TEXTS[name][number])
    began = time.process_time()
    with pytest.raises(RequestError, match=name) as caught:
        (read_toml if name == "a.toml" else read_json)(tmp_path / name)
    quickly(began)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "queue.json")
    with pytest.raises(RequestError, match="it is no file"):
        read_json(tmp_path / "queue.json")
    (tmp_path / "zero.toml").symlink_to(Path("/dev/zero"))
    with pytest.raises(RequestError, match="it is no file"):
        read_toml(tmp_path / "zero.toml")


@pytest.mark.parametrize(
    "text", ['{"a": [1, {"b": "[[[\\"{{{"}], "c": "\\\\"}', "1", '""', "[[], [], {}]", ' {"é": NaN}']
)
def test_json_is_read_as_the_standard_library_reads_it(text):
    assert repr(parse_json(text.encode(), finite=False)) == repr(json.loads(text))


def test_a_long_word_is_near_to_nothing():
    began = time.process_time()
    assert nearest_hint("a" * 400_000, ["method"] * 20) == "" == supermask.masks.targets.nearest("a" * 400_000, ["a"])
    quickly(began)


def test_a_problem_is_one_line_whatever_value_it_tells():
    told = RequestError(["a\nerror: b", "c", "d\r\n\n e"]).problems
    assert told == ["a error: b", "c", "d e"]
