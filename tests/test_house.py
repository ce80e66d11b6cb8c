"""The house rules that a program can check."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import supermask
import ticket_search

ROOT = Path(__file__).parent.parent
STDLIB = sys.stdlib_module_names
SOURCES = sorted([*ROOT.glob("supermask/**/*.py"), *ROOT.glob("ticket_search/**/*.py")])


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["lint-imports"]],
    ids=lambda command: " ".join(command),
)
def test_checkers(command):
    tool = Path(sys.executable).parent / command[0]
    answer = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_methods_do_not_import_each_other():
    names = {path.stem for path in (ROOT / "ticket_search" / "methods").glob("[!_]*.py")}
    for path in (ROOT / "ticket_search" / "methods").glob("[!_]*.py"):
        imported = set(re.findall(r"from \.(\w+) import|methods\.(\w+)", path.read_text()))
        assert not names & {name for pair in imported for name in pair}, path


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_written_whole_or_not_at_all():
    """By two functions; besides them only logs, a key and a compiled kernel are, which have ways of their own."""
    writes = re.compile(r"write_text|write_bytes|\.savefig\(|open\([^)]*[\"'][wax]b?[\"']|fdopen")
    found = {path for path in SOURCES if writes.search(path.read_text())}
    assert set(map(name_of, found)) == {
        "supermask/tickets/file.py",
        "ticket_search/analysis/plots.py",
        "ticket_search/runs/outputs.py",
        "ticket_search/runs/run.py",
        "ticket_search/runs/loggers/journal.py",
        "ticket_search/runs/loggers/tensorboard.py",
        "ticket_search/training/sensitivity.py",
        "ticket_search/trust/key.py",
    }


def test_files_stay_small():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def statements_in(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a body, and of the bodies in it: expressions, most of a tree, are not walked."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, part, ()):
            yield statement
            yield from statements_in(statement)


@functools.cache
def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in statements_in(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its lines without those of the docstring, which says what it must in as many as it takes."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_functions_stay_small():
    """At most 60 lines of code."""
    lengths = {f"{name_of(path)}: {node.name}": length_of(node) for path in SOURCES for node in functions_of(path)}
    assert len(lengths) > 500
    assert {name: length for name, length in lengths.items() if length > 60} == {}


OURS = ("supermask", "ticket_search")
# What may be imported inside a function, and why it does not stand at the top of the file. Of PyTorch every module is
# named, of others the package.
LATE_IMPORTS = {
    "IPython": "is there in a notebook only",
    "PIL": "only image folders decode pictures",
    "huggingface_hub": "an extra that may not be installed",
    "mlflow": "an extra that may not be installed",
    "matplotlib": "takes a second to import, and most runs draw nothing",
    "mnist1d": "an extra that may not be installed",
    "optuna": "an extra that may not be installed",
    "pandas": "an extra that may not be installed",
    "onnxruntime": "an extra that may not be installed",
    "scipy": "takes a second to import, and only SVHN is stored in its format",
    "tensorboard": "loaded with the first event file",
    "torch": "the flags of methods are read by --help, which loads no PyTorch",
    "torch.distributed.device_mesh": "takes seconds to import, and only --fsdp needs it",
    "torch.distributed.fsdp": "takes seconds to import, and only --fsdp needs it",
    "torch.distributed.tensor": "takes seconds to import, and only sharded weights need it",
    "torch.utils.flop_counter": "takes a second to import, and only the count of operations needs it",
    "torchvision": "takes seconds to import, and only its own networks and data sets need it",
    "wandb": "an extra that may not be installed",
    "timm": "may not be installed, takes seconds to import, and only its own networks need it",
    "transformers": "may not be installed, takes seconds to import, and only its own networks need it",
}


@functools.cache
def imports_inside_functions() -> list[tuple[str, str]]:
    """The file and the module of each import statement that stands in a function; a relative module is `ours`."""
    found = {}
    for path in SOURCES:
        for node in (node for function in functions_of(path) for node in statements_in(function)):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = ["ours" if node.level else node.module]
            else:
                continue
            # A function inside another is walked twice.
            found[path, node.lineno] = [
                (name_of(path), "ours" if module.split(".")[0] in OURS else module) for module in modules
            ]
    return [each for modules in found.values() for each in modules]


def test_our_own_modules_are_imported_at_the_top():
    """A room loads its modules when they are used, so that nothing is gained by importing inside a function."""
    late = [path for path, module in imports_inside_functions() if module == "ours"]
    assert len(late) <= 25, late


def test_other_packages_are_imported_inside_functions_for_a_reason():
    late = [(p, m) for p, m in imports_inside_functions() if m != "ours" and m.split(".")[0] not in STDLIB]
    used = {module if module.startswith("torch.") else module.split(".")[0] for _, module in late}
    assert used == set(LATE_IMPORTS), late


def test_the_public_api_is_one_list():
    code = (ROOT / "supermask" / "__init__.pyi").read_text()
    listed = re.findall(r"import (\w+) as \1$", code, re.MULTILINE)
    assert len(listed) > 15
    assert sorted(listed) == supermask.__all__ == dir(supermask)
    for module in (supermask, ticket_search):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
    with pytest.raises(AttributeError, match="serch"):
        ticket_search.serch  # noqa: B018


def test_our_own_warnings_are_errors():
    for module in ("supermask.masks.masks", "ticket_search.training.loop"):
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn_explicit("ours", UserWarning, "file.py", 1, module=module)


def test_the_readme():
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 150
    assert "```" in "\n".join(lines[:20])


def test_the_tree_in_contributing():
    """A line for each room, and every module in it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 150
    for room in {path.parent for path in SOURCES} - {ROOT / "supermask", ROOT / "ticket_search"}:
        line = re.search(rf"^  {room.name}/ +(.*(?:\n {{10,}}.*)*)", text, re.MULTILINE)
        assert line, f"{room.name}/ is missing from the tree"
        modules = [] if room.name == "methods" else [p.stem for p in room.glob("*.py") if p.stem != "__init__"]
        assert [name for name in modules if not re.search(rf"\b{name}\b", line[1])] == [], room.name


@pytest.mark.parametrize(
    "stub",
    sorted([*ROOT.glob("*/*/__init__.pyi"), *ROOT.glob("*/*/*/__init__.pyi")]),
    ids=lambda path: path.parent.name,
)
def test_the_face_of_a_room_lists_its_modules(stub):
    listed = set(re.findall(r"^from \. import (\w+) as \1$", stub.read_text(), re.MULTILINE))
    rooms = {path.parent.name for path in stub.parent.glob("*/__init__.py")}
    assert listed == rooms | {path.stem for path in stub.parent.glob("*.py") if path.stem != "__init__"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


# What makes a search of the README short, where its line does not say it: what is typed is checked all the same. Of the
# seeds the first two are run.
SHORT = {"--epochs": "1", "--train-size": "320", "--model-args": "width=0.2"}
SHORT_IMP = {**SHORT, "--fraction": "0.5"}
FEW = {"0-4": "0-1", "0.1": "0.02"}


def shortened(words: list[str]) -> list[str]:
    """A command of the README with flags that make its trainings short."""
    words = [FEW.get(word, word) for word in words]
    if words[0] != "search" or "--help" in words:
        return words
    flags = SHORT_IMP if "imp" in words and "--levels" not in words else SHORT
    return [*words, *(word for name, value in flags.items() if name not in words for word in (name, value))]


def readme_commands() -> list[list[str]]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    lines = [part.strip() for line in lines for part in line.split("&&")]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("ticket ")]
    assert len(commands) >= 6
    return commands


def run_in_shell(words: list[str], folder: Path) -> str:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "COLUMNS": "200", "HOME": str(folder)}
    environment["OMP_NUM_THREADS"] = "1"  # as many as are left: another test runs in another process
    command = shlex.join(["ticket", *words])
    shell = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert shell.returncode == 0, command + shell.stdout + shell.stderr
    return shell.stdout


@pytest.mark.slow  # seconds, most of them to import PyTorch
def test_the_first_command_of_the_readme_in_a_shell(tmp_path):
    assert "test accuracy" in run_in_shell(readme_commands()[0], tmp_path)


def test_readme_commands(ticket, forked, tmp_path):
    """Every `ticket` line of the README runs, in order, in one folder, and then every Python block."""
    assert supermask.__version__ in run_in_shell(["--version"], tmp_path)
    # A process each would take its time to import PyTorch.
    for command in readme_commands():
        words = [part for word in command for part in sorted(map(str, Path().glob(word))) or [word]]
        answer = ticket(*shortened(words))
        assert answer.code == 0, shlex.join(command) + answer.out + answer.err
    code = blocks("python")
    assert code
    with torch.random.fork_rng():
        for block in code:
            exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


def test_ci_runs_what_the_readme_says():
    command = 'pip install -e ".[dev]" -c constraints.txt && pytest'
    commands = [line for block in blocks("bash") for line in block.splitlines() if "pip install" in line]
    assert len(commands) == 2
    assert command in commands[1]
    for file in (".ci/run", "CONTRIBUTING.md"):
        assert command in (ROOT / file).read_text(), file


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: list(map(Requirement, lines)) for name, lines in PROJECT["optional-dependencies"].items()}
DEPENDENCIES = list(map(Requirement, PROJECT["dependencies"]))


def test_every_dependency_is_used():
    imports = {"scikit-learn": "sklearn", "tomli-w": "tomli_w", "lazy-loader": "lazy_loader", "pillow": "PIL"}
    code = "\n".join(path.read_text() for path in SOURCES)
    for name in (requirement.name for requirement in DEPENDENCIES):
        assert re.search(rf"(import|from|find_spec\(\W) ?{imports.get(name, name)}", code), name


def test_every_dependency_has_a_lower_bound():
    """One without promises versions that nobody has tested: `.ci/versions oldest` tests what is bounded here."""
    (everything,) = EXTRAS["all"]
    assert everything.extras == EXTRAS.keys() - {"all", "dev", "docs"}
    for requirement in [*DEPENDENCIES, *(each for extra in everything.extras for each in EXTRAS[extra])]:
        assert any(bound.operator == ">=" for bound in requirement.specifier), requirement


def test_ci_installs_the_same_tomorrow():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines[1:]:
        pin = Requirement(line)
        assert re.fullmatch(r"==[^+*,]+", str(pin.specifier)) and not pin.url, line
        assert ("sys_platform" in line) == line.startswith(("cuda", "nvidia", "triton")), line
        pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    installed = [*DEPENDENCIES, *(each for name, extra in EXTRAS.items() if name != "docs" for each in extra)]
    for requirement in installed:
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
