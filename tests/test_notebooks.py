"""The notebooks: their text runs, and what lies beside it is that text with outputs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager

HERE = Path(__file__).parent.parent / "examples" / "notebooks"
SPEC = importlib.util.spec_from_file_location("execute_notebooks", HERE / "execute.py")
assert SPEC is not None and SPEC.loader is not None
notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(notebooks)
NAMES = [path.name for path in notebooks.texts()]
# What makes a notebook short.
SHORT = {
    "hidden_network.py": {"epochs = 12": "epochs = 1", "densities = (0.05, 0.2, 0.5, 0.8, 0.95)": "densities = (0.5,)"},
    "winning_ticket.py": {
        "epochs, seeds = 8, 5": "epochs, seeds = 1, 2",
        '    search("imp", levels=(0.5, 0.25, 0.1), density=0.1, epochs=epochs, seed=seed, threads=1, progress=seed == 0)': (
            '    search("imp", levels=(0.5, 0.25, 0.1), density=0.1, epochs=epochs, seed=seed, threads=1, train_size=640, '
            "progress=seed == 0)"
        ),
    },
    "faster_network.py": {
        "seconds = 0.5": "seconds = 0.02",
        'recipe = {"model": "conv2", "optimizer": "adam", "lr": 1e-3, "batch_size": 60, "threads": 1, "epochs": 6}': (
            'recipe = {"model": "conv2", "model_args": "width=0.1", "optimizer": "adam", "lr": 1e-3, "threads": 1, '
            '"epochs": 1, "train_size": 320}'
        ),
        'filters = search("filters", density=0.25, retrain_epochs=12, **recipe)\nfilters': 'filters = search("filters", '
        "density=0.25, retrain_epochs=1, **recipe)\nfilters",
    },
}


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read((HERE / name).with_suffix(".ipynb"), as_version=4)


def test_there_are_notebooks():
    assert len(NAMES) == 3 and SHORT.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text_with_outputs(name):
    text, found = notebooks.read(HERE / name), stored(name)
    assert [(cell.cell_type, cell.source) for cell in found.cells] == [
        (cell.cell_type, cell.source) for cell in text.cells
    ]
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "from top to bottom"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1, "pictures"
    shown = "\n".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert not re.search(r"/(tmp|home|root|work|opt)/", shown), "a path of a machine"
    for cell in code:
        last = cell.source.splitlines()[-1]
        if last == "plt.show()" or "print(" in last or re.fullmatch(r"[\w.\[\]()-]+", last):
            assert cell.outputs, cell.source
    words = [cell.source for cell in found.cells if cell.cell_type == "markdown"]
    assert words[0].startswith("# ") and len(words) >= 5


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[KernelManager]:
    """A process for all notebooks, one after another: to import PyTorch takes longer than a short one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE.parent.parent))
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(tmp_path_factory.mktemp("kernel")))
        yield manager
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, kernel, tmp_path):
    before = sorted(HERE.rglob("*"))
    found = notebooks.execute(notebooks.read(HERE / name, SHORT[name]), tmp_path, kernel)
    assert sorted(HERE.rglob("*")) == before and not list(tmp_path.iterdir()), "its runs are elsewhere"
    pairs = [(cell, old) for cell, old in zip(found.cells, stored(name).cells, strict=True) if cell.cell_type == "code"]
    for cell, old in pairs:
        assert bool(cell.outputs) == bool(old.outputs), cell.source
        bars = [
            output.data["text/html"]
            for output in cell.outputs
            if "<progress" in output.get("data", {}).get("text/html", "")
        ]
        assert len(bars) == (
            0 if "for density" in cell.source else cell.source.count("= search(") or "search(" in cell.source
        )
        for bar in bars:
            done, total = re.findall(r'"([\d.]+)"', bar)
            assert float(done) == float(total), "one bar, at its end"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_whole_and_gives_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent.parent))
    found = notebooks.execute(notebooks.read(HERE / name), tmp_path)
    for cell, old in zip(found.cells, stored(name).cells, strict=True):
        assert bool(cell.get("outputs")) == bool(old.get("outputs"))
