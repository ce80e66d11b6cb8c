from __future__ import annotations

import sys

import pytest
import torch
from products import combine
from torch import nn

import supermask
from supermask.weights.architectures import find_architecture, name_elsewhere
from ticket_search.models.activations import ACTIVATIONS
from ticket_search.models.names import model_names

# Maskable weights as published: on 28x28 grey pixels for the perceptron, on 40 numbers for MNIST-1D, else on CIFAR-10.
WEIGHTS = {
    "lenet-300-100": 266_200,
    "lenet-300-100-bn": 266_200,
    "conv2": 4_300_992,
    "conv4": 2_425_024,
    "conv6": 2_261_184,
    "conv8": 5_275_840,
    "vgg11": 9_222_848,
    "vgg16": 14_715_584,
    "resnet18": 11_164_352,
    "resnet20": 268_336 + 2_560,
    "resnet56": 848_944 + 2_560,
    "wide-resnet-28-10": 36_461_232,
    "vit-tiny": 5_319_552,
    "mnist1d-mlp": 275_000,
    "gpt-tiny": 2 * 12 * 64**2 + 103 * 64,
}
# What they take instead of images.
TOKENS = {"gpt-tiny"}
CONVOLUTIONS = {"conv2": 38_592, "conv4": 259_776, "conv6": 1_144_512}
LARGE = {"wide-resnet-28-10", "vgg16", "resnet18", "vgg11", "resnet56"}


@pytest.mark.parametrize("name", model_names())
def test_weights_as_published(name):
    targets = supermask.find_targets(find_architecture(name)())
    assert targets.size == WEIGHTS[name]
    if name in CONVOLUTIONS:
        assert sum(t.size for t in targets.values() if t.kind == "conv") == CONVOLUTIONS[name]


def test_shortcuts_and_head_of_resnet20():
    targets = supermask.find_targets(find_architecture("resnet20")())
    assert sum(t.size for n, t in targets.items() if "shortcut" in n) == 2_560
    assert targets["head.weight"].size == 640


@combine(name=model_names(), asked=[((1, 8, 8), 10), ((3, 28, 28), 7)])
def test_any_input_size_and_number_of_classes(name, asked):
    shape, classes = asked
    if name in TOKENS:
        shape = shape[2:]
    model = find_architecture(name)(shape, classes).eval()
    assert model(samples(name, shape, classes)).shape == (2, *(shape if name in TOKENS else ()), classes)


def samples(name: str, shape: tuple[int, ...], classes: int) -> torch.Tensor:
    return torch.randint(0, classes, (2, *shape)) if name in TOKENS else torch.randn(2, *shape)


@combine(["lenet-300-100"], name=sorted(set(model_names()) - LARGE), activation=ACTIVATIONS)
def test_every_activation_in_every_network(name, activation):
    shape = (8,) if name in TOKENS else (1, 8, 8)
    model = find_architecture(name)(shape, 4, activation=activation)
    kinds = {type(ACTIVATIONS[activation]())}
    assert any(type(module) in kinds for module in model.modules())
    if activation != "relu":
        assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    model(samples(name, shape, 4)).sum().backward()


def test_identity_makes_a_perceptron_linear():
    model = find_architecture("lenet-300-100")((6,), 3, activation="identity")
    with torch.no_grad():
        x, y = torch.randn(2, 5, 6)
        assert torch.allclose(model(x) + model(y), model(x + y) + model(torch.zeros(5, 6)), atol=1e-5)


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'rleu'; did you mean 'relu'"):
        find_architecture("conv2")(activation="rleu")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet"])
def test_networks_of_torchvision(name):
    model = find_architecture(f"torchvision:{name}")((3, 64, 64), 5)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_torchvision_is_asked_for_what_is_harmless_only():
    assert (
        find_architecture("torchvision:mobilenet_v2")((3, 32, 32), 5, width_mult=0.5).features[0][0].out_channels == 16
    )
    assert find_architecture("torchvision:vit_b_16")((3, 32, 32), 5).image_size == 32
    for arguments, problem in [
        ({"weights": "DEFAULT"}, "does not take weights"),
        ({"progress": True}, "does not take progress"),
        ({"width_mult": "open('x')"}, "expected numbers"),
    ]:
        with pytest.raises(ValueError, match=problem):
            find_architecture("torchvision:mobilenet_v2")((3, 32, 32), 5, **arguments)
    with pytest.raises(ValueError, match="takes images of 3 channels"):
        find_architecture("torchvision:resnet18")((1, 28, 28), 5)
    with pytest.raises(ValueError, match="cannot be built"):
        find_architecture("torchvision:vit_b_16")((3, 33, 33), 5)
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        find_architecture("torchvision:resnet81")


@pytest.mark.parametrize(("name", "shape"), [("test_resnet", (1, 40, 40)), ("test_vit", (3, 32, 32))])
def test_networks_of_timm(name, shape):
    model = find_architecture(f"timm:{name}")(shape, 5)
    assert model(torch.randn(2, *shape)).shape == (2, 5)


def test_timm_is_asked_for_what_is_harmless_only():
    assert find_architecture("timm:test_resnet")((3, 32, 32), 5, drop_rate=0.5).drop_rate == 0.5
    for arguments in ({"pretrained": True}, {"checkpoint_path": 1}, {"drop_rate": "open('x')"}, {"cache_dir": 0}):
        with pytest.raises(ValueError, match=f"expected numbers or true or false for {next(iter(arguments))}"):
            find_architecture("timm:test_resnet")((3, 32, 32), 5, **arguments)
    for arguments, shape, problem in [
        ({}, (40,), "takes images, the data has shape"),
        ({"no_such": 3}, (3, 32, 32), "cannot be built for images of"),
    ]:
        with pytest.raises(ValueError, match=problem):
            find_architecture("timm:test_vit")(shape, 5, **arguments)
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        find_architecture("timm:resnet81")
    with pytest.raises(ValueError, match="timm has no model 'hf-hub:"):
        find_architecture("timm:hf-hub:someone/something")


def test_a_name_that_another_package_has():
    assert [name_elsewhere(name) for name in ("resnet50", "test_vit", "nothing")] == [
        "torchvision:resnet50", "timm:test_vit", "",
    ]  # fmt: skip


def test_a_package_of_networks_that_is_not_installed_is_named(monkeypatch):
    for package, name in (("timm", "timm:resnet18"), ("transformers", "transformers:BertModel")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=f"pip install {package}"):
            find_architecture(name)
