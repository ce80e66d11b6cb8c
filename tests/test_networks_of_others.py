"""Networks of other packages: nothing is left out in silence, counts are met, and what is smaller computes the same.

The list, and what is done with each, is that of benchmarks/networks.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PATH = Path(__file__).parent.parent / "benchmarks" / "networks.py"


def load() -> Any:
    """The benchmark, under a name that is not that of the tests' own networks."""
    spec = importlib.util.spec_from_file_location("networks_of_others", PATH)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


others = load()
# Those that take a second or two run each time.
QUICK = {"vision_transformer", "gpt2", "mixtral"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in others.NETWORKS]
)
def test_nothing_is_pruned_in_silence(name):
    """`examine` asserts the counts, the zeros and the outputs; here, that it got to its end and named everything."""
    torch.set_num_threads(1)
    found = others.examine(name, theirs=False)
    assert found.error == ""
    assert found.unnamed == []
    assert found.targets > 0
    if found.refused:
        assert found.multiply_adds == found.parameters == 1
    else:
        assert 0.1 < found.parameters < 1 and 0.1 < found.multiply_adds < 1


def test_there_are_forty_networks():
    """Of three packages, detection and segmentation among them."""
    assert len(others.NETWORKS) >= 40
    assert sum(network.boxes for network in others.NETWORKS.values()) >= 3
    assert sum(name.startswith(("fcn", "deeplab", "lraspp", "segformer")) for name in others.NETWORKS) >= 4


def test_an_error_and_what_is_not_named_are_in_the_table():
    found = others.Found("net", targets=3, error="ValueError: a|b")
    assert "| ValueError: a/b |" in others.row_of(found)
    other = others.Found("other", unnamed=["fc.weight"])
    page = others.page_of({each.name: others.row_of(each) for each in (found, other)})
    assert "fc.weight is not named" in page and page.count("\n| ") == 4
