"""Run the notebooks, which are kept as text, and write them with their outputs beside it.

Run: python examples/notebooks/execute.py [NAME.py ...]
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient

HERE = Path(__file__).parent


def texts() -> list[Path]:
    """The notebooks as text."""
    return sorted(path for path in HERE.glob("*.py") if path.name != Path(__file__).name)


def read(path: Path, instead: Mapping[str, str] | None = None) -> nbformat.NotebookNode:
    """A notebook's text as a notebook without outputs; lines of its code may be others instead."""
    code = path.read_text(encoding="utf-8")
    for line, other in (instead or {}).items():
        assert f"\n{line}\n" in code, line
        code = code.replace(f"\n{line}\n", f"\n{other}\n")
    notebook = jupytext.reads(code, fmt="py:percent")
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def execute(
    notebook: nbformat.NotebookNode, folder: Path, kernel: KernelManager | None = None
) -> nbformat.NotebookNode:
    """Run a notebook in a folder, or in a kernel that is there already; its outputs are in it afterwards.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises.
    """
    NotebookClient(notebook, kernel, resources={"metadata": {"path": str(folder)}}, record_timing=False).execute()
    return notebook


if __name__ == "__main__":
    for path in [HERE / name for name in sys.argv[1:]] or texts():
        nbformat.write(execute(read(path), HERE), path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb"))
