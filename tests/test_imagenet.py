"""The recipes of ImageNet, carried out on a folder of few small images: all that is in them, for some steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from supermask.weights.architectures import find_architecture
from ticket_search.contract.recipes import find_recipe, recipes
from ticket_search.running.read_config import read_config
from ticket_search.runs.run import Run

RECIPES = [name for name in recipes() if name.startswith("imagenet")]
# In place of the recipe's own network, which takes a minute on one core: one of a million weights.
LITTLE = "torchvision:shufflenet_v2_x0_5"
# Of each recipe what fits no data set of a dozen images; all else is as it says.
SMALL = {
    "image-size": "64", "batch-size": "6", "epochs": "2", "workers": "0", "threads": "1", "evaluate-every": "2it",
}  # fmt: skip
FITTED = {
    "lr": "0.001",
    "warmup": "1it",
    "accumulate": "2",
    "milestones": "1",
    "regrow_every": "2it",
    "regrow_until": "3it",
}

pytestmark = pytest.mark.filterwarnings("ignore:.*the network has learned nothing", "ignore:.*no better than guessing")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """8 training images and 4 test images of two classes, dark ones and bright ones."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("dark", "bright")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(128 * label, 128 * label + 128, (40, 48, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


def test_the_networks_of_the_field_have_a_recipe():
    models = {str(find_recipe(name)["model"]) for name in RECIPES}
    assert models == {"torchvision:resnet50", "torchvision:wide_resnet50_2", "torchvision:vit_b_16"}


@pytest.mark.parametrize("model", [LITTLE, pytest.param("", marks=pytest.mark.slow)], ids=["little", "own"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_a_folder_of_images(name, model, images, ticket, tmp_path):
    recipe = find_recipe(name)
    fitted = {key.replace("_", "-"): value for key, value in FITTED.items() if key in recipe}
    fitted |= {"model": model} if model else {}
    words = [word for key, value in {**SMALL, **fitted}.items() for word in (f"--{key}", value)]
    answer = ticket("search", "--config", name, "--data-dir", str(images), "--name", "run", *words)
    assert answer.code == 0, answer.err
    config = read_config(tmp_path / "runs" / "run")
    changed = {key.replace("-", "_") for key in (*SMALL, *fitted)}
    for key, value in recipe.items():
        found = getattr(config, key, None)
        assert key in {*changed, "about"} or (list(found) == value if isinstance(found, tuple) else found == value), key
    run = Run(tmp_path / "runs" / "run", config)
    assert run.summary["density"] == pytest.approx(config.density, abs=1e-4)
    assert run.summary["cost"]["steps"] == 2 * 2
    assert {"train", "validation"} <= {
        tag.split("/")[1] for row in run.metrics for tag in row if tag.startswith("loss/")
    }
    network = run.ticket.apply_to(find_architecture(config.model)(input_shape=(3, 64, 64), classes=2)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == run.ticket.meta["parameters"]
    assert network(torch.randn(2, 3, 64, 64)).isfinite().all()
