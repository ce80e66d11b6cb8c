"""Make every output, picture and table of the pages anew, by carrying out what the pages show.

    python docs/make_outputs.py             all pages, one after another: a few minutes on two idle cores
    python docs/make_outputs.py verdict     the pages of these names
    python docs/make_outputs.py --stale     only say which outputs no longer belong to their page or to the code

A block of `text` right after a block of `bash` or `python` is what that one prints, and is replaced; commands whose
output is not shown are not carried out. A block with a title is a file. `<!-- before ... -->` has commands that a page
does not show, `<!-- before python ... -->` code. `<!-- shown: 12 lines -->` before an output cuts it; with
`12 lines, and from TEXT` it goes on at the line that has this text, if there is one. `<!-- table: NAME -->` is filled
from the code. A picture is a file that the commands write.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
RECORD = DOCS / "outputs.json"
# What the console of a reader would be: wide enough for tables, without colours and moving bars.
CONSOLE = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "0", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}
# One thread: the numbers do not depend on how many cores there are, and processes do not wait for one another.
CONSOLE |= {"OMP_NUM_THREADS": "1"}
BLOCK = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```\n"
    r"|^<!-- before(?P<hidden> python)?\n(?P<before>.*?)^-->\n",
    re.DOTALL | re.MULTILINE,
)
OUTPUT = re.compile(r"\n(?:<!-- shown: (?P<shown>.*?) -->\n)?```text\n(?P<text>.*?)^```\n", re.DOTALL | re.MULTILINE)
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
PICTURE = re.compile(r"!\[[^]]*\]\((?:docs/)?pictures/([\w.-]+)\)")
# Times differ from run to run; an output in which nothing else differs is left as it is.
TIMES = re.compile(r"\b[\d,.]+ (?:s|min|h)\b(?: \d+ (?:s|min))?| *\n")


@dataclass(frozen=True)
class Block:
    """A block of a page: its language (`before` where it is not shown), the file it is, its code, and what it prints.

    place: the span of its output in the page, or None where the page shows none; shown: what is shown of it.
    """

    language: str
    title: str
    code: str
    place: tuple[int, int] | None = None
    shown: str = ""

    @property
    def runs(self) -> bool:
        """Whether its code is carried out: commands where their output is shown, Python and files always."""
        return self.place is not None or self.language in ("before", "python") or bool(self.title)


def pages() -> dict[str, Path]:
    """The pages by name: the README, and those of the site."""
    return {"README": ROOT / "README.md"} | {path.stem: path for path in sorted(DOCS.glob("*.md"))}


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    found = []
    for match in BLOCK.finditer(text):
        if match["before"] is not None:
            found.append(Block("python" if match["hidden"] else "before", "", match["before"]))
        elif match["language"] != "text":
            output = OUTPUT.match(text, match.end())
            place = output and output.span("text")
            shown = (output and output["shown"]) or ""
            found.append(Block(match["language"], match["title"] or "", match["code"], place, shown))
    return found


def commands_of(code: str) -> list[str]:
    """The commands of a block of `bash`, without comments, and without installing what is installed here."""
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in code.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^pip install [^&]*(&& )?", "", line) for line in lines]
    return [line for line in lines if line]


def shows_outputs(text: str) -> bool:
    """Whether a page shows what its blocks print."""
    return any(block.place for block in blocks_of(text))


def fingerprint_of(text: str) -> str:
    """Of everything on a page that its outputs follow from."""
    parts = [(block.language, block.title, block.code, block.shown) for block in blocks_of(text) if block.runs]
    return hashlib.sha256(json.dumps([parts, PICTURE.findall(text)]).encode()).hexdigest()[:16]


def fingerprint_of_code() -> str:
    """Of the packages, which the outputs come from too."""
    files = sorted(path for room in ("supermask", "ticket_search", "configs") for path in (ROOT / room).rglob("*.*"))
    files = [path for path in files if path.suffix in (".py", ".cpp", ".toml")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def read_record() -> dict[str, dict[str, str]]:
    """What the outputs of each page were made from."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def stale_pages() -> dict[str, str]:
    """The pages whose outputs may be out of date, and why."""
    record, code = read_record(), fingerprint_of_code()
    found = {}
    for name, path in pages().items():
        text = path.read_text()
        if not shows_outputs(text):
            continue
        made = record.get(name, {})
        if made.get("page") != fingerprint_of(text):
            found[name] = "what the page shows is not what its outputs were made from"
        elif made.get("code") != code:
            found[name] = "the code has changed since its outputs were made"
    return found


class Session:
    """One page's blocks, carried out in one folder and one process."""

    def __init__(self, folder: Path) -> None:
        """Go to the folder, and have the console that readers have."""
        os.chdir(folder)
        (folder / "results").symlink_to(ROOT / "results")  # as in a checkout, where the reader is
        os.environ |= CONSOLE | {"PYTHONPATH": f"{ROOT}:{folder}", "TICKET_STATE": str(folder / ".state")}
        sys.path[:0] = [str(folder), str(ROOT)]
        self.names: dict[str, object] = {"__name__": "__main__"}

    def carry_out(self, block: Block) -> str:
        """What a block prints. A block with a title is written to that file first, and not run."""
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code)
            return ""
        with collected() as printed:
            if block.language == "python":
                exec(compile(block.code, "<page>", "exec"), self.names)
            else:
                for command in commands_of(block.code):
                    _command(command, printed)
        return tidy(printed.getvalue())


@contextlib.contextmanager
def collected() -> Iterator[io.StringIO]:
    """Standard output and standard error together."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


def _command(command: str, printed: io.StringIO) -> None:
    """Carry out a command: `ticket` in this process, which has imported PyTorch already, and all others in a shell."""
    if re.match(r"ticket\b[^|&;>$]*$", command):
        from ticket_search.cli import main

        words = [part for word in shlex.split(command)[1:] for part in sorted(map(str, Path().glob(word))) or [word]]
        sys.argv = ["ticket", *words]
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    else:
        done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        printed.write(done.stdout)
        code = done.returncode
    if code:
        raise SystemExit(f"{command}: exit {code}\n{printed.getvalue()}")


def tidy(text: str) -> str:
    """What was printed, without what moves on a terminal, spaces at ends of lines and empty lines at both ends."""
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line for line in lines if "━" not in line)).strip("\n") + "\n"


def cut(printed: str, shown: str) -> str:
    """What is shown of an output: `12 lines`, or `12 lines, and from TEXT`."""
    if not shown:
        return printed
    count, _, text = shown.partition(" lines, and from ")
    lines, first = printed.splitlines(), int(count.removesuffix(" lines"))
    rest = next((place for place, line in enumerate(lines) if text and place >= first and text in line), len(lines))
    gap = ["..."] if rest > first and len(lines) > first else []
    return "\n".join([*lines[:first], *gap, *lines[rest:]]) + "\n"


def make_page(path: Path, folder: Path) -> None:
    """Carry out a page in a folder, and write its outputs into it and its pictures beside it."""
    text = path.read_text()
    session = Session(folder)
    new, done = [], 0
    for block in blocks_of(text):
        printed = session.carry_out(block) if block.runs else ""
        if block.place is None:
            continue
        start, end = block.place
        printed = cut(printed, block.shown)
        same = TIMES.sub("", text[start:end]) == TIMES.sub("", printed)
        new += [text[done:start], text[start:end] if same else printed]
        done = end
    path.write_text("".join([*new, text[done:]]))
    for name in PICTURE.findall(text):
        PICTURES.mkdir(exist_ok=True)
        if Path(name).exists() or not (PICTURES / name).exists():  # else it is shown here, and made by another page
            shutil.copyfile(name, PICTURES / name)


def cpu_seconds() -> float:
    """What the pages have taken so far, whatever else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fill_tables(text: str) -> str:
    """A page with its tables as they follow from the code. Imports no PyTorch."""
    return TABLE.sub(lambda match: match[1] + "\n" + TABLES[match[2]]() + "\n" + match[3], text)


def flag_rows(fields: dict, defaults: bool = True) -> list[str]:
    """A row for each flag: its name, in a file and typed, what it is, and its default."""
    from ticket_search.cli.search import _default, _values
    from ticket_search.contract.declared import ScoreName

    rows = []
    for key, entry in fields.items():
        choices = _values(entry.annotation)[1]
        choices = next((scores.choices for scores in entry.metadata if isinstance(scores, ScoreName)), choices)
        one_of = f" (one of {', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
        default = _default(entry.default).removeprefix("default ") if defaults else ""
        about = re.sub(r"`", "", entry.description or "").replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")
        rows.append(f"| `{key}` | {about}{one_of} | {f'`{default}`' if default else ''} |")
    return rows


def shared_flags() -> str:
    """The flags of all methods."""
    from ticket_search.contract.flags import Config, public_fields

    fields = {key: entry for key, entry in public_fields(Config).items() if key != "method"}
    return "\n".join(["| key | what it is | default |", "|---|---|---|", *flag_rows(fields), ""])


def own_flags() -> str:
    """The flags that each method has beside those of all, and where its defaults differ from theirs."""
    from ticket_search.cli.search import _default
    from ticket_search.contract.flags import Config, public_fields
    from ticket_search.methods import find_method, own_methods

    shared, parts = public_fields(Config), []
    for name in sorted(own_methods()):
        fields = public_fields(find_method(name).Config)
        own = {key: entry for key, entry in fields.items() if key not in shared}
        other = [
            f"`{key} = {_default(entry.default).removeprefix('default ')}`"
            for key, entry in fields.items()
            if key in shared and key != "method" and entry.default != shared[key].default
        ]
        parts += [f"### {name}", ""]
        parts += ["| key | what it is | default |", "|---|---|---|", *flag_rows(own), ""] if own else []
        parts += [f"Other defaults: {', '.join(other)}.", ""] if other else []
    return "\n".join(parts)


def method_list() -> str:
    """Every method, with its idea and its paper."""
    from ticket_search.methods import find_method, own_methods

    found = [find_method(name) for name in sorted(own_methods())]
    rows = [f"| `{method.name}` | {method.idea} | {method.paper} |" for method in found]
    return "\n".join(["| method | idea | paper |", "|---|---|---|", *rows, ""])


TABLES = {"shared-flags": shared_flags, "own-flags": own_flags, "methods": method_list}


def main() -> None:
    """Make what is asked for, each page in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of pages; all if none is given")
    parser.add_argument("--stale", action="store_true", help="only say which outputs may be out of date")
    asked = parser.parse_args()
    if asked.stale:
        for name, why in stale_pages().items():
            print(f"{name}: {why}")
        sys.exit(bool(stale_pages()))
    sys.path.insert(0, str(ROOT))
    code, failed = fingerprint_of_code(), []
    for name in asked.names or pages():
        path, began, worked = pages()[name], time.monotonic(), cpu_seconds()
        before = path.read_text()
        path.write_text(fill_tables(before))
        if shows_outputs(before):
            with tempfile.TemporaryDirectory(prefix="page-") as folder:
                # Forked before PyTorch is imported, so that a page finds what a new process has.
                process = multiprocessing.get_context("fork").Process(target=make_page, args=(path, Path(folder)))
                process.start()
                process.join()
            if process.exitcode:
                failed.append(name)
                continue
            RECORD.write_text(
                json.dumps(read_record() | {name: {"page": fingerprint_of(before), "code": code}}, indent=1) + "\n"
            )
        changed = "changed" if path.read_text() != before else "as before"
        print(f"{name}: {changed}, {time.monotonic() - began:.0f} s, {cpu_seconds() - worked:.0f} s of CPU", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
