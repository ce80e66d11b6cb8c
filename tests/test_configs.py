from __future__ import annotations

import re

import pytest
import torch
from products import thin

from ticket_search.contract.flags import make_config
from ticket_search.contract.recipes import find_recipe, recipes
from ticket_search.methods import find_method
from ticket_search.running.request import read_request

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_and_cites_its_paper(name):
    values = find_recipe(name)
    about = values.pop("about")
    assert re.search(r"\d{4}", about["paper"])
    assert len(about["expected"]) > 20
    request = read_request(["--config", name])
    assert request.method.name == values["method"]
    assert not request.given, "a recipe's flags are not typed ones"
    for key, value in values.items():
        found = getattr(request.config, key)
        assert list(found) == value if isinstance(found, tuple) else found == value


@pytest.mark.parametrize("name", thin(recipes(), 2))
def test_every_recipe_runs_dry(name):
    from supermask import find_targets
    from supermask.weights.architectures import find_architecture

    values = find_recipe(name)
    del values["about"]
    method = find_method(values["method"])
    config = make_config(method.Config, values)
    with torch.device("meta"):  # of the weights the shapes count: they are zeros, and none is drawn
        model = find_architecture(config.model)()
    model.to_empty(device="cpu").apply(lambda module: [torch.nn.init.zeros_(each) for each in module.parameters(False)])
    stages = method.plan(config, find_targets(model), 400)
    assert stages[-1].density == pytest.approx(config.density, rel=1e-4)
