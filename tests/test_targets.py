from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, Residual, Tied, perceptron
from torch import nn

from supermask import find_targets
from supermask.targets import fan_in_and_out, plain_name


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_a_target_or_left_out_with_a_reason(name):
    model = NETWORKS[name][0]()
    targets = find_targets(model)
    unique = {id(p): p.numel() for p in model.parameters()}
    assert targets.size + sum(entry.size for entry in targets.left_out.values()) == sum(unique.values())
    assert all(entry.reason for entry in targets.left_out.values())
    assert list(targets) == [n for n, _ in model.named_parameters() if n in targets], "definition order"


def test_default_targets_are_the_weights_of_layers_that_multiply():
    assert list(find_targets(Residual())) == ["stem.weight", "block.0.weight", "head.weight"]
    attention = find_targets(NETWORKS["attention"][0]())
    assert list(attention) == ["attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]
    assert attention.left_out["token"].reason == "other"
    assert attention.left_out["norm.weight"].reason == "norm"
    assert attention.left_out_by_reason()["bias"] == (3, 24 + 8 + 3)


def test_tied_tensor_is_one_target_with_all_owners():
    targets = find_targets(Tied())
    assert list(targets) == ["embedding.weight", "body.weight"]
    assert [attribute for _, attribute in targets["embedding.weight"].owners] == ["weight", "weight"]
    assert len({id(module) for module, _ in targets["embedding.weight"].owners}) == 2


def test_globs_match_parameters_and_modules():
    model = Residual()
    assert list(find_targets(model, exclude="head")) == ["stem.weight", "block.0.weight"]
    assert list(find_targets(model, exclude=["stem.*", "head.weight"])) == ["block.0.weight"]
    assert list(find_targets(model, include="head")) == ["head.weight", "head.bias"]
    assert list(find_targets(model, include="*.bias", exclude="norm")) == ["block.0.bias", "head.bias"]
    assert find_targets(model, exclude="head").left_out["head.weight"].reason == "excluded"


def test_glob_that_fits_nothing_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'haed'; did you mean 'head'\?"):
        find_targets(Residual(), exclude="haed")


def test_model_without_targets_says_what_it_found():
    with pytest.raises(ValueError, match=r"no tensor that may carry a mask.*weight \(norm\)"):
        find_targets(nn.LayerNorm(3))


def test_lazy_parameters_are_refused():
    with pytest.raises(ValueError, match="0.weight has no shape yet"):
        find_targets(nn.Sequential(nn.LazyLinear(3)))


def test_names_are_those_of_the_plain_model():
    model = perceptron()
    plain = list(find_targets(model))
    assert list(find_targets(torch.compile(model))) == plain
    assert list(find_targets(nn.DataParallel(model))) == plain
    model[2] = torch.compile(model[2])
    assert list(find_targets(model)) == plain
    assert plain_name("a._orig_mod.b.weight") == "a.b.weight"


def test_fan_in_and_out_follow_pytorch():
    for shape in [(300, 784), (64, 3, 3, 3), (5, 4, 7)]:
        expected = nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
        assert fan_in_and_out(shape) == expected
    with pytest.raises(ValueError, match=r"shape \[3\] has no fan-in"):
        fan_in_and_out((3,))
