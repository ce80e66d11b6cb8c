from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, Recurrent, Residual, Tied, perceptron
from torch import nn

import supermask
from supermask import find_targets
from supermask.masks.targets import fan_in_and_out, plain_name

pytestmark = pytest.mark.quick


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


def test_recurrent_weights_are_targets_and_their_biases_are_not():
    targets = find_targets(Recurrent())
    assert {target.kind for name, target in targets.items() if name != "head.weight"} == {"recurrent"}
    assert [name for name in targets if "reverse" not in name and "l1" not in name] == [
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0", "cell.weight_ih", "cell.weight_hh", "head.weight",
    ]  # fmt: skip
    assert targets.left_out_by_reason() == {"bias": (8 + 2 + 1, 8 * 24 + 2 * 21 + 3)}
    assert len(targets) == 3 * 4 + 2 + 1


def test_norms_of_other_packages_and_standardized_weights_are_known_by_name():
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    class ScaledStdConv2d(nn.Conv2d):
        pass

    targets = find_targets(nn.Sequential(LlamaRMSNorm(), ScaledStdConv2d(3, 3, 1), nn.Linear(3, 3, bias=False)))
    assert list(targets) == ["2.weight"]
    assert {name: entry.reason for name, entry in targets.left_out.items()} == {
        "0.weight": "norm", "1.weight": "standardized", "1.bias": "bias",
    }  # fmt: skip


def test_what_is_no_floating_point_number_is_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    assert find_targets(model).left_out["1.weight"].reason == "not floating point"


def test_output_is_the_last_linear_layer_under_the_name_of_its_tensor():
    assert find_targets(Tied()).output == "embedding.weight"
    assert find_targets(Residual(), exclude="head").output == "head.weight"
    assert find_targets(nn.Sequential(nn.Conv2d(3, 3, 1))).output is None


def test_tied_tensor_is_one_target_with_all_owners():
    targets = find_targets(Tied())
    assert list(targets) == ["embedding.weight", "body.weight"]
    assert [attribute for _, attribute in targets["embedding.weight"].owners] == ["weight", "weight"]
    assert len({id(module) for module, _ in targets["embedding.weight"].owners}) == 2


def over(build) -> nn.Sequential:
    """Two layers whose weights are what is made of one tensor."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    torch.manual_seed(0)
    for layer, weight in zip(model, build(torch.randn(16, 16)), strict=True):
        layer.weight = nn.Parameter(weight)
    return model


OVERLAPPING = {
    "a transposed view": lambda big: (big[:8, :8], big[:8, :8].t()),
    "one tensor in two parameters": lambda big: (big[:8, :8], big[:8, :8]),
    "rows that overlap": lambda big: (big[:8, :8], big[7:15, :8]),
    "columns that overlap": lambda big: (big[:8, :8], big[:8, 7:15]),
    "one entry": lambda big: (big[:8, :8], big[7:15, 7:15]),
    "another type": lambda big: (big[:8, :8], big.view(torch.float64)[:8, :8]),
}
APART = {
    "rows": lambda big: (big[:8, :8], big[8:, :8]),
    "columns": lambda big: (big[:8, :8], big[:8, 8:]),
    "every other column": lambda big: (big[:8, ::2], big[:8, 1::2]),
    "rows of a flat tensor": lambda big: (big.view(-1)[:64].view(8, 8), big.view(-1)[64:128].view(8, 8)),
    "a transposed copy": lambda big: (big[:8, :8], big[:8, :8].t().contiguous()),
    "two tensors": lambda big: (big[:8, :8].clone(), big[:8, :8].clone()),
}


@pytest.mark.parametrize("how", OVERLAPPING)
def test_two_parameters_over_one_memory_are_refused(how):
    model = over(OVERLAPPING[how])
    everything = {f"{place}.weight": torch.ones(8, 8, dtype=torch.bool) for place in (0, 1)}
    for call in (
        lambda: supermask.prune(model, 0.5, "random", allocation="layerwise"),
        lambda: supermask.prune(model, 0.5, include="1"),
        lambda: supermask.hold(model, dict(list(everything.items())[:1])),
        lambda: supermask.learn(model, 0.5),
    ):
        with pytest.raises(
            ValueError, match=r"0.weight and 1.weight are two parameters over the same memory.*clone\(\)"
        ):
            call()
    model[1].weight = nn.Parameter(model[1].weight.detach().clone().float())
    supermask.hold(model, supermask.prune(model, 0.5))


@pytest.mark.parametrize("how", APART)
def test_the_density_is_that_of_what_is_zero(how):
    model = over(APART[how])
    supermask.hold(model, supermask.prune(model, 0.5, "random", allocation="layerwise"))
    kept = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
    assert supermask.masks_of(model).density == kept / 128 == 0.5


def test_a_parameter_that_repeats_its_entries_is_refused():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    for weight in (torch.randn(1, 8).expand(8, 8), torch.randn(15).as_strided((8, 8), (1, 1))):
        model[0].weight = nn.Parameter(weight)
        with pytest.raises(ValueError, match=r"0.weight repeats its entries in memory"):
            supermask.prune(model, 0.5)
        assert list(find_targets(model, exclude="0")) == ["1.weight"]
    model[0].weight = nn.Parameter(torch.randn(120).as_strided((8, 8), (6, 4)))
    with pytest.raises(ValueError, match=r"0.weight repeats"):
        supermask.prune(model, 0.5)
    for strides in ((13, 1), (9, 7)):
        model[0].weight = nn.Parameter(torch.randn(120).as_strided((8, 8), strides))
        assert list(find_targets(model)) == ["0.weight", "1.weight"]


def test_a_bias_in_the_memory_of_a_weight_is_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].bias.data = model[0].weight.data[3]
    with pytest.raises(ValueError, match="0.weight and 0.bias are two parameters over the same memory"):
        supermask.prune(model, 0.5)


def test_tensors_without_memory_do_not_overlap():
    assert list(find_targets(perceptron().to("meta"))) == ["0.weight", "2.weight", "4.weight"]
    empty = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 0), nn.Linear(3, 3))
    assert len(find_targets(empty)) == 3


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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "name", ["Linear", "Conv1D", *(f"Conv{part}{d}d" for part in ("", "Transpose") for d in (1, 2, 3))]
)
def test_fans_are_what_a_layer_of_ones_sums(name, groups):
    from transformers.pytorch_utils import Conv1D  # takes seconds to import

    layer = Conv1D if name == "Conv1D" else getattr(nn, name)
    if layer in (nn.Linear, Conv1D):
        model, x, groups = (layer(4, 6) if layer is nn.Linear else layer(6, 4)), torch.ones(1, 4), 1
    else:
        model, x = layer(4, 6, 3, groups=groups), torch.ones(1, 4, *[7] * int(layer.__name__[-2]))
    for parameter in model.parameters():
        nn.init.constant_(parameter, float(parameter.dim() > 1))
    target = find_targets(model)["weight"]
    out = model(x.requires_grad_())
    out.sum().backward()
    assert target.groups == groups
    assert target.fans == (out.max(), x.grad.max() * groups)
    assert target.parameter.shape[target.output_axis] == out.shape[1] // (groups if target.output_axis else 1)


def test_fan_in_and_out_follow_pytorch():
    for shape in [(300, 784), (64, 3, 3, 3), (5, 4, 7)]:
        expected = nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
        assert fan_in_and_out(shape) == expected
    with pytest.raises(ValueError, match=r"shape \[3\] has no fan-in"):
        fan_in_and_out((3,))
