from __future__ import annotations

import pytest
import torch

import supermask
from supermask.ticket import find_architecture
from ticket_search.models import model_names

# Maskable weights on 28x28 grey pixels and 10 classes, as published.
WEIGHTS = {"lenet-300-100": 266_200}


@pytest.mark.parametrize("name", model_names())
def test_weights_as_published(name):
    assert supermask.find_targets(find_architecture(name)((1, 28, 28), 10)).size == WEIGHTS[name]


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 7)])
def test_any_input_size_and_number_of_classes(name, shape, classes):
    assert find_architecture(name)(shape, classes)(torch.randn(2, *shape)).shape == (2, classes)
