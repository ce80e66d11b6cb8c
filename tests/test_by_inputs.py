"""Scores that look at the inputs of layers, against loops written by hand."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from networks import Attention, Recurrent, Residual
from torch import nn

import supermask
from supermask.choosing.pruning import BY_INPUTS
from supermask.selection.top_k import count_kept

pytestmark = pytest.mark.quick
each_score = pytest.mark.parametrize("score", BY_INPUTS)


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def perceptron(*widths: int) -> nn.Sequential:
    sizes = widths or (12, 9, 7, 4)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def samples(columns: int = 12, count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(5, columns, dtype=torch.float64) for _ in range(count)]


# --- each by its formula


def slow_wanda(weight, x, kept, groups=None):
    """Row by row, a sort of |w| ||x||; of N:M group by group."""
    norms = [float(sum(value**2 for value in x[:, j])) ** 0.5 for j in range(x.shape[1])]
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for o in range(len(weight)):
        keys = [abs(float(weight[o, j])) * norms[j] for j in range(weight.shape[1])]
        pieces = (
            [range(len(keys))] if groups is None else [range(j, j + groups[1]) for j in range(0, len(keys), groups[1])]
        )
        for piece in pieces:
            best = sorted(piece, key=lambda j: -keys[j])[: kept if groups is None else groups[0]]
            mask[o, best] = True
    return mask, weight * mask


def slow_sparsegpt(weight, x, kept, groups=None, block=128, damping=0.01):
    """Column by column, with an inverse taken anew for what is left: what the Cholesky factor is short for."""
    weight, (rows, columns) = weight.clone(), weight.shape
    hessian = 2 * sum(torch.outer(row, row) for row in x)
    hessian += damping * hessian.diagonal().mean() * torch.eye(columns, dtype=x.dtype)
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    step = groups[1] if groups else block
    for j in range(columns):
        inverse = torch.linalg.inv(hessian[j:, j:])
        if j % step == 0:
            last = min(j + step, columns)
            # The weights of a block are compared before any of them is corrected for another, by the costs that each
            # will have when its turn comes.
            costs = torch.stack(
                [weight[:, k] ** 2 / torch.linalg.inv(hessian[k:, k:])[0, 0] for k in range(j, last)], 1
            )
            for o in range(rows):
                here = groups[0] if groups else (2 * kept * last + columns) // (2 * columns) - int(mask[o].sum())
                best = sorted(range(last - j), key=lambda k: -float(costs[o, k]))[:here]
                mask[o, [j + k for k in best]] = True
        for o in range(rows):
            if not mask[o, j]:
                weight[o, j:] -= weight[o, j] / inverse[0, 0] * inverse[0]
    return mask, weight * mask


SLOW = {"wanda": slow_wanda, "sparsegpt": slow_sparsegpt}


def test_every_score_is_compared_with_a_slow_one():
    assert set(SLOW) == set(BY_INPUTS)


@pytest.mark.parametrize("granularity", ["weight", "2:4", "1:3"])
@each_score
def test_layers_are_pruned_in_order_by_what_the_pruned_ones_before_them_give(score, granularity):
    model, batches = perceptron(24, 12, 36, 5), samples(24)
    groups = None if granularity == "weight" else tuple(map(int, granularity.split(":")))
    density = 0.3 if groups is None else groups[0] / groups[1]
    before = copy.deepcopy(model.state_dict())
    masks = supermask.prune(model, density, score, granularity=granularity, batches=batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "as it was"
    x = torch.cat(batches)
    for layer in (0, 2, 4):
        weight = model[layer].weight.detach()
        mask, changed = SLOW[score](weight, x, count_kept(density, weight.shape[1]), groups)
        assert torch.equal(masks[f"{layer}.weight"], mask), layer
        x = torch.tanh(x @ changed.T + model[layer].bias.detach())
    assert list(masks) == ["0.weight", "2.weight", "4.weight"]


@pytest.mark.parametrize("density", [0.07, 0.3, 0.5, 1.0])
@each_score
def test_every_row_keeps_what_the_density_asks(score, density):
    model = perceptron(300, 20, 15)
    masks = supermask.prune(model, density, score, batches=samples(300))
    for name, columns in {"0.weight": 300, "2.weight": 20}.items():
        assert masks[name].sum(1).unique().tolist() == [count_kept(density, columns)]
    by_layer = supermask.prune(model, {"0": 0.25, "output": 1.0}, score, batches=samples(300))
    assert by_layer["0.weight"].sum(1).unique().tolist() == [75] and by_layer["2.weight"].all()


@pytest.mark.parametrize("block", [5, 8, 128])
@pytest.mark.parametrize("granularity", ["weight", "2:4", "5:8"])
def test_kept_weights_are_corrected_in_place(granularity, block):
    model, batches = perceptron(24, 16, 5), samples(24, 6)
    groups = None if granularity == "weight" else tuple(map(int, granularity.split(":")))
    density = 0.3 if groups is None else groups[0] / groups[1]
    twin = copy.deepcopy(model)
    masks = supermask.prune_and_correct(model, density, granularity, batches=batches, block=block)
    x = torch.cat(batches)
    for layer in (0, 2):
        weight = twin[layer].weight.detach()
        mask, expected = slow_sparsegpt(weight, x, count_kept(density, weight.shape[1]), groups, block)
        assert torch.equal(masks[f"{layer}.weight"], mask)
        torch.testing.assert_close(model[layer].weight.detach(), expected)
        assert not model[layer].weight.detach()[~mask].any() and not torch.equal(expected, weight * mask)
        x = torch.tanh(x @ model[layer].weight.detach().T + model[layer].bias.detach())
    supermask.hold(model, masks)
    supermask.check(model)


def planted(seed: int):
    """A layer, and correlated inputs some of which are large: there small weights count."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(32, 32, generator=generator, dtype=torch.float64) / 8 + torch.eye(32, dtype=torch.float64)
    x = torch.randn(400, 32, generator=generator, dtype=torch.float64) @ mix
    x[:, torch.randperm(32, generator=generator)[:4]] *= 10
    layer = nn.Linear(32, 24, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(24, 32, generator=generator))
    return layer, x


@pytest.mark.parametrize("granularity", ["weight", "2:4"])
def test_with_outliers_among_the_inputs_the_outputs_change_less(granularity):
    for seed in range(20):
        layer, x = planted(seed)
        errors = []
        for score in ("sparsegpt", "wanda", "magnitude"):
            pruned = copy.deepcopy(layer)
            if score == "sparsegpt":
                supermask.prune_and_correct(pruned, 0.5, granularity, batches=[x])
            else:
                masks = supermask.prune(layer, 0.5, score, granularity=granularity, batches=[x])
                with torch.no_grad():
                    pruned.weight.mul_(masks["weight"])
            errors.append(float((pruned(x) - layer(x)).detach().square().mean()))
        assert errors[0] < errors[1] < errors[2], seed


def test_inputs_that_are_always_0_are_dropped_first():
    x = torch.cat(samples())
    x[:, [2, 7, 8]] = 0
    model = nn.Linear(12, 6).double()
    masks = supermask.prune_and_correct(model, 0.5, batches=[x])
    assert not masks["weight"][:, [2, 7, 8]].any()
    dead = nn.Linear(12, 6).double()
    supermask.prune_and_correct(dead, 0.5, batches=[torch.zeros_like(x)])
    assert not dead.weight.any()


def test_low_precision_is_computed_in_single():
    layer, x = planted(0)
    low = copy.deepcopy(layer).bfloat16()
    layer.load_state_dict(low.state_dict())
    masks = supermask.prune_and_correct(low, 0.5, batches=[x.bfloat16()])
    other = supermask.prune_and_correct(layer.float(), 0.5, batches=[x.bfloat16().float()])
    assert masks == other and torch.equal(low.weight, layer.weight.bfloat16())


def test_a_hessian_without_an_inverse_is_told():
    x = torch.ones(3, 12) * 1e4
    with pytest.raises(ValueError, match=r"the Hessian of 12 columns has no inverse in torch.float32: expected more"):
        supermask.prune_and_correct(nn.Linear(12, 3), 0.5, batches=[x], damping=1e-12)


def test_a_damping_or_a_block_that_is_none():
    with pytest.raises(ValueError, match="damping and block above 0, got damping=0, block=-1"):
        supermask.prune_and_correct(perceptron(), 0.5, batches=samples(), damping=0, block=-1)


# --- any layer that multiplies inputs by weights


@each_score
def test_a_convolution_is_the_linear_layer_on_its_unfolded_inputs(score):
    conv, x = nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2, groups=2).double(), samples_of_images()
    masks = supermask.prune(conv, 0.4, score, batches=[x])
    patches = F.unfold(x, 3, dilation=2, padding=1, stride=2).transpose(1, 2).reshape(-1, 2, 3, 9)
    for group in range(2):
        linear = nn.Linear(27, 4).double()
        weight = conv.weight.detach()[4 * group : 4 * group + 4]
        with torch.no_grad():  # of each place of the kernel the channels, one beside the other
            linear.weight.copy_(weight.permute(0, 2, 3, 1).reshape(4, 27))
        inputs = patches[:, group].transpose(1, 2).reshape(-1, 27)
        found = supermask.prune(linear, 0.4, score, batches=[inputs])["weight"]
        ours = masks["weight"][4 * group : 4 * group + 4].permute(0, 2, 3, 1).reshape(4, 27)
        assert torch.equal(ours, found)


def samples_of_images():
    return torch.randn(4, 6, 7, 9, dtype=torch.float64)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@each_score
def test_convolutions_of_other_dimensions(score, padding_mode):
    flat = nn.Conv2d(3, 4, (1, 5), padding=(0, 2), padding_mode=padding_mode).double()
    line = nn.Conv1d(3, 4, 5, padding="same", padding_mode=padding_mode).double()
    line.load_state_dict({"weight": flat.weight[:, :, 0], "bias": flat.bias})
    x = torch.randn(2, 3, 11, dtype=torch.float64)
    ours = supermask.prune(line, 0.4, score, batches=[x, x[0]])["weight"]
    assert torch.equal(
        ours, supermask.prune(flat, 0.4, score, batches=[x[:, :, None], x[:1, :, None]])["weight"][:, :, 0]
    )
    solid = nn.Conv3d(3, 4, (1, 1, 5), padding=(0, 0, 2), padding_mode=padding_mode).double()
    solid.load_state_dict({"weight": flat.weight[:, :, None], "bias": flat.bias})
    found = supermask.prune(solid, 0.4, score, batches=[x[:, :, None, None], x[:1, :, None, None]])["weight"]
    assert torch.equal(ours, found[:, :, 0, 0])


@pytest.mark.parametrize("granularity", ["weight", "2:4"])
@each_score
def test_the_conv1d_of_transformers_is_a_linear_layer(score, granularity):
    from transformers.pytorch_utils import Conv1D

    theirs, linear = Conv1D(5, 12).double(), nn.Linear(12, 5).double()
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(12, 5))
        linear.weight.copy_(theirs.weight.T)
    batches = samples()
    found = supermask.prune(theirs, 0.5, score, granularity=granularity, batches=batches)["weight"]
    expected = supermask.prune(linear, 0.5, score, granularity=granularity, batches=batches)["weight"]
    assert torch.equal(found.T, expected)


class Twice(nn.Module):
    """A layer that is called twice, once by keyword, whose norm would move in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.drop, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(input=self.drop(self.norm(torch.tanh(self.body(x))))))


@each_score
def test_all_calls_of_a_module_count(score):
    model, x = Twice().double().train(), torch.randn(7, 6, dtype=torch.float64)
    model.norm.running_mean.normal_()
    before = copy.deepcopy(model.state_dict())
    masks = supermask.prune(model, 0.5, score, batches=[(x, None)], exclude="head")
    twin = copy.deepcopy(model).eval()
    both = torch.cat([x, twin.norm(torch.tanh(twin.body(x)))])
    expected = supermask.prune(nn.Sequential(twin.body), 0.5, score, batches=[both])
    assert torch.equal(masks["body.weight"], expected["0.weight"])
    assert model.training and all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@each_score
def test_every_form_of_a_batch(score):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x, scale=1.0):
            return self.layer(x * scale)

    torch.manual_seed(3)
    model, x = Named().double(), samples()[0]
    forms = [x, (x, torch.zeros(5)), [x, 1.0, None], {"x": x}, {"x": x, "scale": 1.0}]
    found = [supermask.prune(model, 0.5, score, batches=[form]) for form in forms]
    found.append(supermask.prune(model, 0.5, score, batches=iter([x[:2], x[2:]])))
    assert all(masks == found[0] for masks in found)


@each_score
def test_networks_with_norms_residuals_and_groups(score):
    model = Residual()
    masks = supermask.prune(model, 0.5, score, batches=[torch.randn(3, 1, 8, 8)])
    for name, mask in masks.items():
        columns = mask[0].numel()
        assert mask.flatten(1).sum(1).unique().tolist() == [count_kept(0.5, columns)], name


# --- what cannot be


@each_score
@pytest.mark.parametrize(
    ("make", "asked", "message"),
    [
        (perceptron, {"batches": None}, "looks at inputs: expected batches=..., an iterable of samples, got none"),
        (perceptron, {"batches": 3}, "an iterable of samples, got a int"),
        (perceptron, {"batches": []}, "batches is empty"),
        (perceptron, {"batches": ["x"]}, "a batch is a str, expected a tensor of inputs"),
        (perceptron, {"batches": [torch.full((2, 12), torch.nan).double()]}, "inputs of 0.weight are NaN or infinite"),
        (perceptron, {"density": 0.01}, r"keeps none of the weights .* 0.weight \(12\), 2.weight \(9\), 4.weight \(7\)"),
        (perceptron, {"density": 1.5}, "density is the fraction kept"),
        (perceptron, {"granularity": "filter"}, "expected weight or N:M, as 2:4, got .filter"),
        (perceptron, {"granularity": "2:4"}, "2:4 keeps 0.5 of every tensor, not 0.3; 2.weight .* reads 9 inputs"),
        (perceptron, {"allocation": "erk", "rounds": 2}, "leave allocation, rounds out"),
        (Attention, {}, r"cannot prune attention.in_proj_weight \(read by MultiheadAttention\): give exclude=\['att"),
        (Attention, {"exclude": "*in_proj_weight"}, r"seen no input of attention.out_proj.weight: .*exclude=\['att"),
        (Recurrent, {}, r"cannot prune lstm.weight_ih_l0 \(read by LSTM\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(score, make, asked, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    batches = [torch.randn(2, 3, 8)] if make is Attention else samples()
    with pytest.raises(ValueError, match=message):
        supermask.prune(model, **{"density": 0.3, "score": score, "batches": batches, **asked})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
