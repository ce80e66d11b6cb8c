from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import NETWORKS, Attention, Residual, perceptron
from torch import nn

import supermask
from supermask.live.held import program_of
from supermask.live.learning import RANKINGS
from supermask.selection.top_k import count_kept

pytestmark = pytest.mark.quick

LR, MOMENTUM, DECAY = 0.3, 0.9, 0.05


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def numpy_steps(w: list, s: list, x, y, density: float, ranking: str, steps: int, with_sign: bool = True) -> list:
    """Edge-popup on a two-layer network with SGD, momentum and weight decay, written out by hand."""
    velocity = [np.zeros_like(part) for part in s]
    for _ in range(steps):
        keys = [np.abs(part) for part in s]
        if ranking == "global":
            everything = np.sort(np.concatenate([k.ravel() for k in keys]))[::-1]
            cut = everything[count_kept(density, everything.size) - 1]
            masks = [k >= cut for k in keys]
        else:
            masks = [k >= np.sort(k.ravel())[::-1][count_kept(density, k.size) - 1] for k in keys]
        w1, w2 = w[0] * masks[0], w[1] * masks[1]
        hidden = x @ w1.T
        active = np.maximum(hidden, 0)
        logits = active @ w2.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        dw2 = p.T @ active
        dw1 = ((p @ w2) * (hidden > 0)).T @ x
        for i, gradient in enumerate((dw1, dw2)):
            ds = gradient * w[i] * (np.sign(s[i]) if with_sign else 1.0) + DECAY * s[i]
            velocity[i] = ds if _ == 0 else MOMENTUM * velocity[i] + ds
            s[i] = s[i] - LR * velocity[i]
    return s


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("steps", [1, 4])
def test_steps_equal_those_written_by_hand_with_the_sign(ranking, steps):
    net = make_net().double()
    supermask.learn(net, 0.5, allocation=ranking, seed=3)
    net.double()
    program = program_of(net)
    names = list(program.owners)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (16,), generator=generator)
    w = [program.parameter(n).detach().numpy().copy() for n in names]
    s = [program.score(n).detach().numpy().copy() for n in names]
    assert any((part < 0).any() for part in s)
    arguments = (x.numpy(), y.numpy(), 0.5, ranking, steps)
    expected = numpy_steps(w, [part.copy() for part in s], *arguments)
    wrong = numpy_steps(w, [part.copy() for part in s], *arguments, with_sign=False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], LR, MOMENTUM, weight_decay=DECAY)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    for name, right, without_sign in zip(names, expected, wrong, strict=True):
        score = program.score(name).detach().numpy()
        assert np.allclose(score, right, rtol=1e-12, atol=1e-14)
        assert not np.allclose(score, without_sign, rtol=1e-3), "the sign of the score is part of its gradient"


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("network", NETWORKS)
def test_effective_weights_density_and_frozen_rest(network, ranking):
    model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    targets = supermask.learn(model, 0.3, allocation=ranking)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable == [n for n, _ in model.named_parameters() if n.endswith("_scores")]
    assert len(trainable) == len(targets)
    before = {n: t.clone() for n, t in model.state_dict().items() if not n.endswith("_scores")}
    seen = {}
    program = program_of(model)
    end = program.end
    program.end = lambda: (
        seen.update({n: m._parameters[a].detach().clone() for n, ((m, a), *_) in program.owners.items()}),
        end(),
    )
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 1.0, momentum=0.9, weight_decay=1e-4
    )
    for _ in range(3):
        masks = supermask.masks_of(model)
        out = model(x)
        for name, mask in masks.items():
            weight = program.parameter(name)
            assert torch.equal(seen[name].view(torch.int32), torch.where(mask, weight, 0.0).view(torch.int32))
        if ranking == "layerwise":
            assert masks.kept_per_tensor == {n: count_kept(0.3, t.size) for n, t in targets.items()}
        assert ranking == "layerwise" or masks.kept == count_kept(0.3, targets.size)
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()
    after = model.state_dict()
    changed = [
        n for n, t in before.items() if not torch.equal(after[n], t) and "running" not in n and "batches" not in n
    ]
    assert changed == []
    supermask.check(model)


def test_redrawn_weights_biases_norms_and_scale():
    model = Residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3.0)
    supermask.learn(model, 0.25, exclude="head", seed=4)
    std = (2 / 9) ** 0.5
    assert torch.allclose(model.stem.weight.abs(), torch.tensor(2 * std)), "sqrt(1/density) = 2"
    assert torch.allclose(model.head.weight.abs(), torch.tensor((2 / 8) ** 0.5)), "a dense layer is not scaled"
    assert not model.head.weight.requires_grad
    assert not model.block[0].bias.any()
    assert bool((model.norm.weight == 1).all())
    assert not model.norm.bias.any()
    kept = Attention()
    token = torch.randn(1, 1, 8)
    kept.token.data.copy_(token)
    weight = kept.head.weight.detach().clone()
    supermask.learn(kept, 0.5, weights="keep", train_norms=True)
    assert torch.equal(kept.head.weight, weight)
    assert torch.equal(kept.token, token)
    assert [n for n, p in kept.named_parameters() if p.requires_grad and not n.endswith("_scores")] == [
        "norm.weight",
        "norm.bias",
    ]


def test_global_scores_share_one_scale():
    model = nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10))
    supermask.learn(model, 0.1, allocation="global")
    densities = supermask.masks_of(model).densities
    assert all(0.05 < d < 0.15 for d in densities.values()), densities
    layerwise = nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100))
    supermask.learn(layerwise, 0.1)
    bounds = [program_of(layerwise).score(n).detach().abs().max() for n in ("0.weight", "1.weight")]
    assert bounds == [pytest.approx(784**-0.5, rel=0.01), pytest.approx(300**-0.5, rel=0.01)]


@pytest.mark.parametrize("network", NETWORKS)
def test_bake_deepcopy_and_state_dict(network):
    model, x = NETWORKS[network][0]().eval(), NETWORKS[network][1]()
    flags = [p.requires_grad for p in model.parameters()]
    names = list(model.state_dict())
    supermask.learn(model, 0.4)
    out = model(x)
    baked = supermask.bake(model)
    assert list(baked.state_dict()) == names
    assert [p.requires_grad for p in baked.parameters()] == flags
    assert torch.equal(baked(x), out)
    assert torch.equal(model(x), out)
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), out)
    score = next(p for p in other.parameters() if p.requires_grad)
    with torch.no_grad():
        score.copy_(-score.flip(0) * 2)
    other(x)
    assert torch.equal(model(x), out), "a copy has scores of its own"


def test_a_part_on_its_own_and_gradient_checkpointing():
    model, x = Residual().eval(), torch.randn(3, 1, 6, 6)
    supermask.learn(model, 0.4)
    baked = supermask.bake(model)
    assert torch.equal(model.head(torch.ones(1, 8)), baked.head(torch.ones(1, 8)))
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    block = model.block
    features = torch.relu(model.norm(model.stem(x)))
    again = torch.utils.checkpoint.checkpoint(block, features, use_reentrant=False)
    model.head((features + again).mean((2, 3))).square().sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected)


def test_an_exception_or_a_keyboard_interrupt_inside_a_pass_leaves_no_trace():
    class Rude(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.raises: type[BaseException] | None = None

        def forward(self, x):
            x = self.fc(x)
            if self.raises:
                raise self.raises
            return x

    model = Rude()
    supermask.learn(model, 0.5)
    frozen = model.fc.weight
    for error in (RuntimeError, KeyboardInterrupt):
        model.raises = error
        with pytest.raises(error):
            model(torch.ones(1, 3))
        model.raises = None
        out = model(torch.ones(1, 3))
        assert model.fc.weight is frozen
        assert torch.equal(out, supermask.bake(model)(torch.ones(1, 3)))


@pytest.mark.slow
def test_torch_compile_gives_the_same_gradients():
    model, x = perceptron(), torch.randn(5, 12)
    supermask.learn(model, 0.5)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.compile(model, fullgraph=True)(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters() if p.grad is not None], expected)


def test_check_finds_changed_weights_and_empty_layers():
    model = perceptron()
    supermask.learn(model, 0.5)
    model[2].weight.data[0, 0] += 1.0
    with pytest.raises(ValueError, match="frozen weights have changed"):
        supermask.check(model)
    model = perceptron()
    supermask.learn(model, 0.2, allocation="global")
    program_of(model).score("4.weight").data.zero_()
    with pytest.raises(ValueError, match="4.weight keeps 0 of 21 weights"):
        supermask.check(model)


def test_bad_requests():
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        supermask.learn(perceptron(), 0)
    with pytest.raises(ValueError, match="unknown allocation 'globl'; did you mean 'global'"):
        supermask.learn(perceptron(), 0.5, allocation="globl")
    with pytest.raises(ValueError, match="unknown init 'signed'"):
        supermask.learn(perceptron(), 0.5, weights="signed")
    model = perceptron()
    with pytest.raises(ValueError, match=r"keeps none of the weights of 4.weight \(21\)"):
        supermask.learn(model, 0.02)
    assert program_of(model) is None
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match=r"shape \[9\] has no fan-in"):
        supermask.learn(perceptron(), 0.5, include=["0.bias"])


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vit_b_16"))]
)
def test_networks_of_torchvision_unmodified(name, ranking):
    import torchvision

    model = getattr(torchvision.models, name)(num_classes=10)
    targets = supermask.learn(model, 0.5, allocation=ranking)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    size = 224 if "vit" in name else 64
    before = supermask.masks_of(model)
    model(torch.randn(2, 3, size, size)).square().sum().backward()
    optimizer.step()
    supermask.check(model)
    masks = supermask.masks_of(model)
    assert masks.changed(before) > 0
    if ranking == "layerwise":
        assert masks.kept_per_tensor == {n: count_kept(0.5, t.size) for n, t in targets.items()}
    else:
        assert masks.kept == count_kept(0.5, targets.size)


def test_scores_that_begin_as_magnitudes_choose_what_magnitude_pruning_keeps():
    for asked in ({"density": 0.3}, {"density": 0.3, "allocation": "global"}, {"density": 0.5, "granularity": "2:4"}):
        model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
        expected = supermask.prune(model, **{"allocation": "layerwise", **asked})
        supermask.learn(model, program=supermask.live.EdgePopup("magnitude"), weights="keep", **asked)
        assert supermask.masks_of(model) == expected
    from ticket_search.methods.edge_popup import Config

    (problem,) = Config(scores="magnitude").problems()
    assert problem.startswith("--scores magnitude ranks the weights, and --init signed-constant gives all")
    assert Config(scores="magnitude", init="keep").problems() == []
    with pytest.raises(ValueError, match="scores begin as random or magnitude, got scores='zeros'"):
        supermask.live.EdgePopup("zeros")
