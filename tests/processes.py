"""Python code in a process of its own that costs no import of PyTorch: it is forked from one that has imported it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a process ended, as `subprocess.run` tells it."""

    returncode: int
    stdout: str
    stderr: str


# Another process, which has imported nothing: commands that end early, one after the other.
_COMMANDS = """
import json, sys
from ticket_search.cli import main
for words in json.loads(sys.argv[2]):
    given, sys.argv = sys.argv, ["ticket", *words]
    try:
        main()
    except SystemExit:
        pass
    sys.argv = given
    assert sys.argv[1] not in sys.modules, words
"""


def check_not_imported(module: str, commands: list[list[str]]) -> None:
    """No command of `ticket` imports the module."""
    subprocess.run([sys.executable, "-c", _COMMANDS, module, json.dumps(commands)], capture_output=True, check=True)


def run_python(code: str, *arguments: object, cwd: str | Path = ".") -> Ended:
    """What `python -c CODE ARGUMENTS` does; needs the fixture `forkserver_with_torch`."""
    with tempfile.TemporaryDirectory() as folder:
        process = start_python(Path(folder), code, *arguments, cwd=cwd)
        process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, *(Path(folder, name).read_text() for name in ("stdout", "stderr")))


def start_python(folder: Path, code: str, *arguments: object, cwd: str | Path = ".") -> BaseProcess:
    """The same, under way: what it says is in the files `stdout` and `stderr` of the folder."""
    process = multiprocessing.get_context("forkserver").Process(
        target=_execute, args=(code, [str(each) for each in arguments], str(Path(cwd).resolve()), str(folder))
    )
    process.start()
    return process


def run_ranks(work: Callable[..., None], *arguments: object, ranks: int) -> None:
    """`work(rank, *arguments)` in as many processes, forked from one that has imported what all of them need."""
    process = multiprocessing.get_context("forkserver").Process(target=_fork_ranks, args=(work, arguments, ranks))
    process.start()
    process.join()
    assert process.exitcode == 0, "what went wrong is told above"


def _fork_ranks(work: Callable[..., None], arguments: tuple[object, ...], ranks: int) -> None:
    import torch._dynamo  # by DistributedDataParallel, when it is first used
    import torch.distributed.fsdp
    import torch.multiprocessing

    torch.multiprocessing.start_processes(work, arguments, nprocs=ranks, start_method="fork")


def _execute(code: str, arguments: list[str], cwd: str, folder: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        with Path(folder, name).open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<code of a test>", "exec"), {"__name__": "__main__"})
