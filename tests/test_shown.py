"""What Python and notebooks print of runs, tickets, masks, targets and comparisons: the facts, escaped."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import supermask
import ticket_search
from supermask import Masks, Ticket
from supermask.masks import notebook
from supermask.masks.notebook import Bar
from supermask.masks.texts import harmless
from ticket_search import RequestError, compare, search
from ticket_search.analysis.findings import to_rows
from ticket_search.runs.run import Run

HOSTILE = "<script>alert('x')</script>\x1b[31m&\"'`\n\u202e"


def parsed(page: str) -> ElementTree.Element:
    """The page as a tree: raises where a tag stays open, or a text is not escaped."""
    tree = ElementTree.fromstring(f"<body>{page}</body>")
    svg = "{http://www.w3.org/2000/svg}"
    known = {"body", "div", "b", "table", "tr", "td", "th", *(svg + tag for tag in ("svg", "text", "rect"))}
    assert {element.tag for element in tree.iter()} <= known
    assert not [name for element in tree.iter() for name in element.attrib if name.startswith("on")]
    text = "".join(tree.itertext())
    assert all(c.isprintable() for c in text)
    return tree


def words(page: str) -> str:
    return " ".join(parsed(page).itertext())


def widths(page: str) -> list[float]:
    """How much of each bar is filled."""
    rectangles = [e for e in parsed(page).iter("{http://www.w3.org/2000/svg}rect")]
    return [
        float(filled.get("width", "")) / float(ground.get("width", ""))
        for ground, filled in zip(rectangles[::2], rectangles[1::2], strict=True)
    ]


def masks_of(*names: str) -> Masks:
    return Masks({name: torch.arange(20) < 5 * (index + 1) for index, name in enumerate(names)})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("shown") / HOSTILE.replace("/", "").replace("\n", "").replace("\x1b", "")
    return search("imp", runs=folder, density=0.6, epochs=1, threads=1, progress=False)


def test_masks():
    masks = masks_of("a", HOSTILE)
    assert repr(masks) == "Masks(2 tensors, 15 of 40 weights kept, density 0.375)"
    page = masks._repr_html_()
    assert "15 of 40 (37.5 %)" in words(page) and "5 of 20 (25 %)" in words(page) and "alert('x')" in words(page)
    assert widths(page) == [0.25, 0.5]
    assert parsed(Masks({})._repr_html_()) is not None
    many = masks_of(*(f"layer{number}" for number in range(4)))
    assert widths(many._repr_html_()) == [0.25, 0.5, 0.75, 1.0]


def test_more_bars_than_one_reads_are_told():
    bars = [Bar(f"{'block.' * 20}{number}", number / 100, "x") for number in range(100)]
    page = notebook.page("title", {}, bars)
    assert len(widths(page)) == 40 and "and 60 more" in words(page)
    assert "...ock.block" in words(page) and "block.39" in words(page), "the ends of long names tell them apart"


def test_targets():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))
    targets = supermask.find_targets(net)
    assert repr(targets) == "Targets(2 tensors, 1368 maskable weights, 4 parameters left out)"
    page = targets._repr_html_()
    assert "216 [8, 3, 3, 3] conv" in words(page) and "left out, norm" in words(page)
    assert widths(page) == pytest.approx([216 / 1152, 1.0], abs=1e-3)


def test_tickets(run):
    ticket = run.ticket
    accuracy = f"{run.summary['test_accuracy']:.2f} %"
    assert repr(ticket) == (
        f"Ticket(imp, lenet-300-100, digits: density 0.6, {ticket.kept} weights kept, test accuracy {accuracy})"
    )
    page = ticket._repr_html_()
    for fact in (
        "imp",
        "lenet-300-100",
        "digits",
        "start, final",
        accuracy,
        f"{ticket.kept:,} of {ticket.masks.size:,}",
    ):
        assert fact in words(page)
    assert widths(page) == pytest.approx(list(ticket.masks.densities.values()), abs=1e-3)


@pytest.mark.parametrize(
    "meta",
    [
        {"method": HOSTILE, "model": [HOSTILE], "data": {HOSTILE: 1}, "seed": HOSTILE},
        {"accuracy": HOSTILE}, {"accuracy": {"final": [1]}}, {"accuracy": {"final": {"test": HOSTILE}}},
        {"metric": {"name": HOSTILE, "unit": HOSTILE, "values": {"final": {"test": 1.0, "validation": 1}}}},
        {"metric": {"values": 3}}, {"metric": 4, "accuracy": None},
    ],
)  # fmt: skip
def test_tickets_of_anybody(meta):
    ticket = Ticket(masks_of(HOSTILE), {}, meta)
    assert repr(ticket).startswith("Ticket(")
    assert "5 of 20 (25 %)" in words(ticket._repr_html_())


def test_tickets_of_several_tasks():
    net = nn.Linear(4, 5)
    state = {"weight": torch.randn(5, 4), "bias": torch.zeros(5)}
    tickets = {}
    for number, name in enumerate(("a", HOSTILE)):
        masks = Masks({"weight": (torch.arange(20) < 5 * (number + 1)).reshape(5, 4)})
        tickets[name] = Ticket(masks, {"final": supermask.make_state(state, masks)})
    joined = supermask.join_tasks(tickets, net.state_dict() | state)
    assert "2 tasks" in repr(joined)
    assert widths(joined._repr_html_()) == [0.25, 0.5]


def test_runs(run, tmp_path):
    accuracy = f"{run.summary['test_accuracy']:.2f} %"
    assert (
        repr(run)
        == f"Run(imp, lenet-300-100, digits, seed 0: density 0.6, test accuracy {accuracy}, {harmless(str(run.path))})"
    )
    page = run._repr_html_()
    for level in run.levels:
        assert f"{level['kept']:,}" in words(page) and f"{level['test_accuracy']:.2f}" in words(page)
    assert accuracy in words(page) and "<script>" in words(page), "as text"
    assert widths(page) == pytest.approx(list(run.ticket.masks.densities.values()), abs=1e-3)
    unfinished = Run(tmp_path, run.config)
    assert repr(unfinished).endswith(f"not finished, {tmp_path})") and "not finished" in words(unfinished._repr_html_())


def test_comparisons(run):
    comparison = compare([run.path, "missing<b>"])
    (group,) = comparison.groups
    comparison = replace(comparison, groups=(replace(group, label=HOSTILE),), notes=(HOSTILE,))
    first, line = repr(compare([run.path])).splitlines()
    assert first == "Comparison(1 group)"
    assert line.startswith(
        f"  imp: density 0.6, test accuracy {group.mean:.2f} %, 1 seed, {group.levels[-1].difference.mean:+.2f} pp"
    )
    page = comparison._repr_html_()
    assert f"{group.mean:.2f} %" in words(page) and "alert('x')" in words(page) and "missing<b>" in words(page)


def test_a_comparison_as_a_data_frame(run, monkeypatch):
    pandas = pytest.importorskip("pandas")
    comparison = compare([run.path])
    frame = comparison.frame()
    rows = to_rows(comparison)
    assert list(frame.columns) == list(rows[0]) and len(frame) == len(run.levels) == len(rows)
    assert isinstance(frame, pandas.DataFrame) and list(frame["mean"]) == [row["test_accuracy"] for row in run.levels]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RequestError, match="pip install pandas"):
        comparison.frame()


@pytest.mark.parametrize("package", [supermask, ticket_search])
def test_the_packages_say_that_they_are_typed(package):
    assert (Path(package.__file__).parent / "py.typed").exists()
