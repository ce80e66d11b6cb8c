"""Names of somebody else's making, in every file that is read, printed by every command and written to every page."""

from __future__ import annotations

import ast
import csv
import html.parser
import io
import json
import re
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from ticket_bytes import rewrite

import supermask
from supermask.masks.texts import harmless
from ticket_search import analysis
from ticket_search.analysis import markdown
from ticket_search.contract.metric import Metric
from ticket_search.contract.text_files import read_toml
from ticket_search.runs.console import HarmlessConsole
from ticket_search.runs.progress import warn_in_a_line
from ticket_search.sweeps.study import Study, write_study

RUNS = Path(__file__).parent / "fixtures" / "runs-0.1.0" / "finished"
# Colours, a title of the window, a line that is written over, a bell, an 8-bit sequence, text that turns round, and what
# HTML, Markdown, LaTeX and a shell would act on.
STRANGE = (
    "\x1b[31mred\x1b]0;title\x07\rover\b\x9b2J\u202eleft\u2066\x7f\x00\u200b"
    "<script>alert(1)</script>\"><img src=x onerror=alert(1)>'[a](javascript:alert(1))|\\input{x}$&%#_^~`id`"
)
# As a folder's name can have it.
IN_A_PATH = "imp-" + STRANGE.replace("\x00", "").replace("/", "")


def is_harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def strange(value: Any) -> Any:
    """The same with a strange end to each text that is not a word which the program knows."""
    known = {"imp", "dense", "higher", "lower", "reinit", "shuffle", "random", "accuracy", "digits", "0"}
    if isinstance(value, dict):
        return {key: strange(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [strange(inner) for inner in value]
    return value + STRANGE if isinstance(value, str) and value not in known else value


def write_strange_run(folder: Path) -> None:
    """A finished run all of whose texts are strange: records, ticket, names of tensors."""
    shutil.copytree(RUNS / "imp", folder)
    for name in ("summary.json", "controls.json", "environment.json"):
        record = strange(json.loads((folder / name).read_text()))
        if name == "summary.json":
            record |= {"model": STRANGE, "metric": {"name": "mae", "direction": "lower", "unit": STRANGE}}
            record |= {"test_metric": 35.0, "val_metric": 35.0}
            record["levels"] = [row | {"test_metric": 35.0, "val_metric": 35.0} for row in record["levels"]]
        if name == "controls.json":
            metric = {"name": "mae", "direction": "lower", "unit": STRANGE}
            own = {"control": STRANGE, "data": STRANGE, "metric": metric, "test_metric": 30.0, "val_metric": 30.0}
            record["rows"] = [{**row, **own} for row in record["rows"]]
        (folder / name).write_text(json.dumps(record))
    config = read_toml(folder / "config.toml") | {"model": STRANGE, "data": STRANGE, "model_args": [STRANGE]}
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    for path in folder.rglob("ticket.safetensors"):
        path.write_bytes(rewrite(path.read_bytes(), make_strange))
        loaded = supermask.load(path)
        prints = {name: supermask.fingerprint(state.tensors(loaded.masks)) for name, state in loaded.states.items()}

        def sign(description: dict[str, Any], _: Any, prints: dict[str, str] = prints) -> None:
            for name, state in description["states"].items():
                state["fingerprint"] = prints[name]

        path.write_bytes(rewrite(path.read_bytes(), sign))


def make_strange(description: dict[str, Any], outer: dict[str, Any]) -> None:
    renamed = {name: name + STRANGE for name in description["tensors"]}
    description["tensors"] = {renamed[name]: value for name, value in description["tensors"].items()}
    for state in description["states"].values():
        for group in state.get("drawn", []):
            group["names"] = [renamed[name] for name in group["names"]]
        for key in ("signs", "gains", "stored"):
            if key in state:
                state[key] = {renamed[name]: value for name, value in state[key].items()}
    for name in [name for name in outer if "/" in name]:
        state, _, tensor = name.partition("/")
        outer[f"{state}/{renamed[tensor]}"] = outer.pop(name)
    meta = strange(description["meta"]) | {"model": STRANGE, "data": STRANGE, "parent": STRANGE}
    meta |= {STRANGE: STRANGE, "accuracy": {STRANGE: {STRANGE: STRANGE}, "final": {"test": 35.0, STRANGE: STRANGE}}}
    description["meta"] = meta


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    write_strange_run(folder)
    return folder


@pytest.fixture
def strange_run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs" / IN_A_PATH))


def write_strange_csv(path: Path) -> None:
    rows = [
        {"method": STRANGE, "label": STRANGE, "model": STRANGE, "data": STRANGE, "density": density, "seed": seed,
         "test_accuracy": 90.0 + seed, "control": control}
        for seed in range(2) for density, control in ((1.0, ""), (0.5, ""), (0.5, STRANGE))
    ]  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


SWEEP = {"base": {"method": STRANGE, "model": STRANGE}, "grid": {STRANGE: [1]}, STRANGE: STRANGE}
STUDY = {"title": STRANGE, "question": STRANGE, "paper": STRANGE, "hours": 1.0, "sweep": SWEEP, STRANGE: 1}

# What is typed, and a part of what is printed: RUN is the strange run, NAMED one of which only the folder's name is, CSV
# a strange table, and the others files.
COMMANDS = {
    "inspect RUN": "masked tensor",
    "inspect RUN --json": "",
    "inspect TICKET": "density",
    "inspect BROKEN": "error: ",
    "runs list": "test",
    "runs list --json": "",
    "compare RUN --full --masks": "density",
    "compare RUN --full --json": "",
    "compare RUN --with CSV --full --csv out.csv --markdown out.md --latex out.tex": "note: ",
    "compare --with CSV --full --csv out.csv --markdown out.md --latex out.tex": "density",
    "compare --with BROKEN": "error: ",
    "evaluate RUN": "error: ",
    "card RUN": "A subnetwork",
    "export RUN --to onnx --output out.onnx": "error: ",
    "export RUN --to safetensors --output out.safetensors": "",
    "bench RUN": "error: ",
    "diagnose RUN": "",
    "diagnose NAMED": "There are too few seeds",
    "evaluate NAMED": "test",
    "runs rm NAMED --yes": "deleted",
    "signs RUN": "",
    "controls RUN": "",
    "connect RUN --rewind 0": "",
    "resume RUN": "",
    "train RUN": "error: ",
    "search --weights RUN --dry-run": "",
    "search --config TOML": "error: ",
    "sweep SWEEP --dry-run": "error: ",
    "study STUDY --dry-run": "error: ",
    "push RUN hf:user/name --dry-run": "",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_no_name_reaches_the_terminal_raw(words, strange_run, ticket, tmp_path):
    places = {"RUN": strange_run, "TICKET": strange_run / "levels" / "01" / "ticket.safetensors"}
    places |= {name: tmp_path / f"{name}-{IN_A_PATH}" for name in ("CSV", "BROKEN", "TOML", "SWEEP", "STUDY")}
    if "NAMED" in words:
        places["NAMED"] = shutil.copytree(RUNS / "imp", tmp_path / "others" / IN_A_PATH)
    write_strange_csv(places["CSV"])
    places["BROKEN"].write_text(f'{STRANGE}"{STRANGE},{STRANGE}')
    for name, table in (("TOML", SWEEP["base"] | {STRANGE: STRANGE}), ("SWEEP", SWEEP), ("STUDY", STUDY)):
        places[name] = places[name].with_suffix(".toml")
        places[name].write_text(tomli_w.dumps(table))
    answer = ticket(*(str(places.get(word, word)) for word in words.split()))
    for text in (answer.out, answer.err):
        assert is_harmless(text), [part for part in re.split(r"(?<=\n)", text) if not is_harmless(part)]
    assert answer.code in (0, 1, 2) and COMMANDS[words] in answer.out + answer.err, (answer.out, answer.err)


def test_a_console_shows_what_it_is_given_and_does_nothing_else():
    out = io.StringIO()
    console = HarmlessConsole(file=out, width=4000)
    table = Table(STRANGE, title=STRANGE, caption=STRANGE)
    table.add_row(Text(STRANGE))
    console.print(STRANGE, table, Panel(STRANGE, title=STRANGE), Text("two\nlines"), "[red]no markup[/red] :smile:")
    console.rule(STRANGE)
    assert is_harmless(out.getvalue())
    assert out.getvalue().count(harmless(STRANGE).replace("\n", "")) >= 6
    assert "two\nlines" in out.getvalue() and "[red]no markup[/red] :smile:" in out.getvalue()


def test_the_styles_of_the_program_itself_stay():
    out = io.StringIO()
    HarmlessConsole(file=out, force_terminal=True, color_system="standard", width=400).print(
        STRANGE, style="red", highlight=False
    )
    assert out.getvalue().startswith("\x1b[31m") and is_harmless(re.sub(r"\x1b\[\d*m", "", out.getvalue()))


def test_a_warning_is_shown_and_does_nothing(capsys, monkeypatch):
    def usual(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", usual)
        warn_in_a_line()
        for category, file in ((UserWarning, supermask.__file__), (UserWarning, "x.py"), (RuntimeWarning, "x.py")):
            warnings.warn_explicit(STRANGE, category, file, 1)
    shown = capsys.readouterr().err
    assert shown.count("x1b[31mred") == 3 and is_harmless(shown)


def test_nothing_is_printed_past_the_console():
    """By `print`, by rich's own console or by typer, where these are not known to print nothing strange."""
    known = {"cli/terminal.py": 1, "cli/__init__.py": 1, "cli/card.py": 1, "cli/push.py": 1, "cli/runs.py": 1}
    known["data/images.py"] = 1  # a path that is shown harmless
    root = Path(__file__).parent.parent / "ticket_search"
    raw = {"print", "Console", "typer.echo", "typer.secho", "typer.confirm", "typer.prompt"}
    found: dict[str, int] = {}
    for path in sorted(root.rglob("*.py")):
        text = path.read_text()
        if not any(f"{word}(" in text for word in raw):
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        if count := sum(ast.unparse(call.func) in raw for call in calls):
            found[path.relative_to(root).as_posix()] = count
    assert found == known


class Page(html.parser.HTMLParser):
    """What a browser would do with a page: its tags with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def check_page(text: str, scripts: int = 0) -> None:
    """Check that nothing on a page runs, is fetched from elsewhere, or turns the direction of what is read."""
    page = Page(text)
    assert is_harmless(text)
    assert sum(tag == "script" for tag, _ in page.tags) == scripts
    assert not any("alert" in script for script in page.scripts)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "form", "base", "a", "link"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/")), attributes


def check_markdown(text: str) -> None:
    """Check that a page in Markdown has no HTML, no link and no formula of a strange name."""
    assert "alert" in text and is_harmless(text)
    body = re.sub(r"```.*?```|`[^`\n]*`", "", text.partition("\n---\n")[2] or text, flags=re.DOTALL)
    assert "<script" not in body and "<img" not in body and "<" not in re.sub(r"\\<", "", body)
    assert not re.search(r"(?<!\\)\](?:\(|\\\()javascript", body)
    assert not re.search(r"(?<!\\)[$`]", body)


@pytest.fixture
def comparisons(strange_run, tmp_path):
    write_strange_csv(tmp_path / "others.csv")
    others = analysis.tables.read_csv(tmp_path / "others.csv")
    # Of another metric than the run, which a page does not show beside it.
    return [analysis.comparison.compare([strange_run]), analysis.comparison.compare([], others=others)]


def test_no_name_is_more_than_text_on_a_page(comparisons, strange_run):
    text = analysis.html.to_html(comparisons[0], STRANGE, extra_pictures=[(STRANGE, b"")])
    assert "alert" in text and "<svg" in text
    check_page(text, scripts=1)
    for found in comparisons:
        check_page(found._repr_html_())
        for full in (False, True):
            check_markdown(analysis.tables.to_markdown(found, full=full))
            latex = analysis.tables.to_latex(found, full=full)
            assert is_harmless(latex) and r"\input" not in latex and not re.search(r"(?<!\\)[&%#_$]alert", latex)
    ticket = supermask.load(strange_run / "ticket.safetensors")
    for shown in (ticket._repr_html_(), ticket.masks._repr_html_()):
        check_page(shown)
    other = replace(ticket, meta={}, masks=~ticket.masks)
    for shown in (repr(ticket), str(ticket.diff(other)), repr(comparisons[0])):
        assert is_harmless(shown)
    check_markdown(analysis.card.make_card(strange_run / "ticket.safetensors").text)


@pytest.mark.slow
def test_no_name_is_more_than_text_on_the_page_of_a_study(strange_run, tmp_path):
    study = Study("study", STRANGE, STRANGE, STRANGE, 1.0, None, (STRANGE,), (STRANGE,), (), {}, ())
    page, _, html_page, _ = write_study(study, [strange_run], tmp_path)
    check_markdown(page.read_text())
    check_page(html_page.read_text(), scripts=1)


@pytest.mark.slow
def test_no_name_is_more_than_text_in_tensorboard(comparisons, tmp_path):
    for number, found in enumerate(comparisons):
        analysis.to_tensorboard.write_board(found, tmp_path / f"board-{number}")
        names = [path.relative_to(tmp_path) for path in (tmp_path / f"board-{number}").rglob("*")]
        assert names and all(is_harmless(str(name)) and "<" not in str(name) for name in names)
        texts = [analysis.to_tensorboard._text(found, found.groups[0].metric)]
        assert all(b"<script" not in json.dumps(text, default=repr).encode() for text in texts)


def test_a_unit_is_no_formula(comparisons):
    group = comparisons[0].groups[0]
    metric = Metric("mae", "lower", "$\\frac{$\x1b[31m")
    found = replace(comparisons[0], groups=[replace(group, metric=metric)])
    assert analysis.plots.figure_svg(found).startswith(b"<?xml")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("IMP is above SynFlow.", "IMP is above SynFlow."), ("see www.e.f", r"see www\.e.f"), ("WWW.E", r"WWW\.E")],
)
def test_a_point_is_escaped_where_it_would_make_a_link(text, shown):
    assert markdown.escape(text) == shown
