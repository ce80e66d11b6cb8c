from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Tied, perceptron
from products import thin
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock
from torchvision.ops import SqueezeExcitation

import supermask
from supermask import Masks
from supermask.masks.targets import find_targets
from supermask.shrinking.flow import Flow, describe, flow


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_masks(model: nn.Module, density: float, seed: int) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    targets = find_targets(model)
    return Masks({name: torch.rand(t.parameter.shape, generator=generator) < density for name, t in targets.items()})


def without(masks: Masks, *names: str) -> Masks:
    return Masks({name: torch.zeros_like(mask) if name in names else mask for name, mask in masks.items()})


def full(model: nn.Module) -> Masks:
    return random_masks(model, 2, 0)


def walk(start: set, edges: set) -> set:
    """Every node that can be reached, one step at a time."""
    seen, front = set(start), list(start)
    while front:
        node = front.pop()
        for a, b in edges:
            if a == node and b not in seen:
                seen.add(b)
                front.append(b)
    return seen


def search(masks: list[Tensor], skips: set) -> list[Tensor]:
    """Effective masks of a chain of linear layers by graph search; `skips` are residual edges between units."""
    weights = {((d, j), (d + 1, i)) for d, mask in enumerate(masks) for i, j in mask.nonzero().tolist()}
    edges = weights | skips
    reached = walk({(0, j) for j in range(masks[0].shape[1])}, edges)
    reaching = walk({(len(masks), i) for i in range(masks[-1].shape[0])}, {(b, a) for a, b in edges})
    found = [torch.zeros_like(mask) for mask in masks]
    for a, b in weights:
        found[a[0]][b[1], a[1]] = a in reached and b in reaching
    return found


class ResidualPerceptron(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = x + F.gelu(layer(x))
        return self.layers[-1](x)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 0.6), st.lists(st.integers(1, 7), min_size=2, max_size=6))
def test_chains_agree_with_a_graph_search(seed, density, widths):
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    masks = random_masks(nn.Sequential(*layers), density, seed)
    found = flow(nn.Sequential(*layers), masks, torch.zeros(3, widths[0]))
    expected = search(list(masks.values()), set())
    assert found.effective == Masks(dict(zip(masks, expected, strict=True)))
    assert (found.density, found.effective_density) == (masks.density, found.effective.density)
    for layer, effective in zip(found.layers, expected, strict=True):
        alive = effective.any(1)
        assert found.dead[layer.name] == tuple(i for i, lives in enumerate(alive.tolist()) if not lives)
        assert layer[1:] == (
            tuple(effective.shape),
            effective.numel(),
            int(masks[layer.name].sum()),
            int(effective.sum()),
            len(alive),
            int((~alive).sum()),
        )


@pytest.mark.parametrize("seed", range(6))
def test_residual_chains_agree_with_a_graph_search(seed):
    model = ResidualPerceptron(6, 4)
    masks = random_masks(model, 0.15, seed)
    skips = {((d, i), (d + 1, i)) for d in range(3) for i in range(6)}
    expected = search(list(masks.values()), skips)
    assert flow(model, masks, torch.zeros(1, 6)).effective == Masks(dict(zip(masks, expected, strict=True)))


class Gated(nn.Module):
    """Squeeze and excitation: a sigmoid over a bottleneck scales the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)
        self.gate = SqueezeExcitation(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(F.hardswish(self.stem(x))).mean((2, 3)))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        return self.head(self.attention(x, x, x)[0])


def small_cnn(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        pool,
        nn.Conv2d(4, 6, (1, 2), groups=2),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False),
        nn.ReLU6(),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


BRUTE = {
    "avg-pool": (lambda: small_cnn(nn.AvgPool2d(2, padding=1)), (2, 7, 7)),
    "max-pool": (lambda: small_cnn(nn.MaxPool2d(2, ceil_mode=True)), (2, 5, 5)),
    "adaptive": (lambda: small_cnn(nn.AdaptiveMaxPool2d(2)), (2, 7, 7)),
    "one-pixel": (lambda: small_cnn(nn.AvgPool2d(1)), (2, 1, 3)),  # most kernel positions meet only padding
    "gate": (Gated, (2, 4, 4)),
    "attention": (Attending, (3, 3)),
}


@torch.no_grad()
def matters(model: nn.Module, masks: Masks, x: Tensor, signed: bool) -> Masks:
    """The weights whose change changes the output, tried one by one in a random network without biases."""
    model = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if name in masks:
            values = torch.rand(p.shape, generator=generator, dtype=p.dtype) * 0.2 + 0.05
            signs = torch.randn(p.shape, generator=generator).sign() if signed else 1
            p.copy_(values * signs * masks[name])
        elif name.endswith("bias"):
            p.zero_()
    before = model(x)
    found = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for name, mask in masks.items():
        for index in map(tuple, mask.nonzero().tolist()):
            old = parameters[name][index].item()
            parameters[name][index] = 1e3 * old  # so large that it wins each maximum that sees it
            found[name][index] = not torch.equal(model(x), before)
            parameters[name][index] = old
    return Masks(found)


@pytest.mark.parametrize("density", [0.25, 0.5])
@pytest.mark.parametrize("name", BRUTE)
def test_a_weight_is_effective_where_changing_it_changes_the_output(name, density):
    make, shape = BRUTE[name]
    model = make().eval()
    x = torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    model(x.float())
    for seed in range(2):
        masks = random_masks(model, density, seed)
        found = flow(model, masks, x.float())
        assert found.effective == matters(model, masks, x, signed=name == "attention")
        assert found.effective.within(masks)


REAL = {
    "resnet18": (torchvision.models.resnet18, (3, 64, 64)),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, (3, 96, 96)),
    "densenet121": (torchvision.models.densenet121, (3, 64, 64)),
    "vit": (lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10), (3, 32, 32)),
}


@pytest.mark.parametrize("name", thin(REAL, 2))
def test_whole_networks_flow(name):
    make, shape = REAL[name]
    model = make()
    found = flow(model, full(model), torch.zeros(2, *shape))
    assert (found.density, found.effective_density, found.collapsed) == (1, 1, ())
    assert not any(found.dead.values())
    assert describe(found) == []


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "recurrent"])
def test_the_networks_of_the_tests_flow(name):
    make, example = NETWORKS[name]
    model = make()
    assert flow(model, full(model), example()).effective_density == 1


def test_a_cut_in_a_chain_takes_everything():
    model = perceptron()
    found = flow(model, without(full(model), "2.weight"), torch.zeros(1, 12))
    assert found.collapsed == ("0.weight", "2.weight", "4.weight")
    assert (found.effective_density, found.dead["0.weight"]) == (0, tuple(range(9)))
    assert describe(found) == [
        "0.weight keeps 108 of 108 weights and none is on a path from input to output",
        "2.weight keeps none of its 63 weights",
        "4.weight keeps 21 of 21 weights and none is on a path from input to output",
    ]


def test_a_cut_beside_a_residual_connection_takes_the_branch():
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    cut = "layer1.0.conv2.weight"
    found = flow(model, without(full(model), cut), torch.zeros(1, 3, 64, 64))
    assert found.collapsed == ("layer1.0.conv1.weight", cut)
    cuts = ("layer2.0.conv2.weight", "layer2.0.downsample.0.weight")
    found = flow(model, without(full(model), *cuts), torch.zeros(1, 3, 64, 64))
    assert found.collapsed == tuple(full(model))


def test_a_cut_in_attention():
    model = VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3)
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    masks = full(model)
    masks[name][8:16] = False
    found = flow(model, masks, torch.zeros(1, 3, 16, 16))
    # Without keys queries have no effect, and values are averaged.
    assert found.dead[name] == tuple(range(16))
    assert found.collapsed == ()


def test_a_gate_passes_a_constant():
    model = Gated()
    found = flow(model, without(full(model), "gate.fc2.weight"), torch.zeros(1, 2, 4, 4))
    assert found.collapsed == ("gate.fc1.weight", "gate.fc2.weight")


@pytest.mark.parametrize(("width", "density"), [(256, 0), (64, 0.9)])
def test_no_depth_over_or_underflows(width, density):
    model = nn.Sequential(*[nn.utils.skip_init(nn.Linear, width, width, bias=False) for _ in range(200)])
    masks = random_masks(model, density, 0)
    for i, mask in enumerate(masks.values()):
        mask[(7 * i + 7) % width, 7 * i % width] = True  # one path in any case
    found = flow(model, masks, torch.zeros(1, width))
    assert found.effective == masks
    assert len(found.near_collapse()) == (200 if density == 0 else 0)
    if density:
        assert len(flow(model, without(masks, "100.weight"), torch.zeros(1, width)).collapsed) == 200


def test_magnitude_pruning_leaves_dead_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 3))
    masks = supermask.prune(model, density=0.05, allocation="layerwise")
    found = flow(model, masks, torch.zeros(1, 20))
    expected = search(list(masks.values()), set())
    assert found.effective == Masks(dict(zip(masks, expected, strict=True)))
    assert found.dead["0.weight"]
    assert found.dead["2.weight"]
    assert 0 < found.effective_density < found.density


def test_sentences_and_near_collapse():
    model = nn.Sequential(nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 3))
    masks = {name: torch.zeros_like(mask) for name, mask in full(model).items()}
    masks["0.weight"][:3] = True
    masks["2.weight"][[0, 1, 5], [0, 1, 200]] = True
    masks["4.weight"][:, :2] = True
    found = flow(model, masks, torch.zeros(1, 100))
    assert found.near_collapse() == ("2.weight", "4.weight")
    assert found.near_collapse(limit=2, fraction=0.01) == ("0.weight", "2.weight")
    assert describe(found, limit=2) == [
        "2.weight keeps 3 of 30,000 weights and only 2 are on a path from input to output"
    ]
    masks["4.weight"][:, :2] = False
    masks["4.weight"][0, 99] = True
    found = flow(model, masks, torch.zeros(1, 100))
    assert describe(found)[1] == "2.weight keeps 3 of 30,000 weights and none is on a path from input to output"
    assert (found.near_collapse(), len(found.collapsed)) == ((), 3)
    small = perceptron()
    assert flow(small, full(small), torch.zeros(1, 12)).near_collapse(limit=100) == ()


class DirectBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, False, 0.1, 1e-5, False)


class DirectLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, (4,), self.weight, self.bias)


NORMS = {
    "direct batch": (lambda: DirectBatchNorm(4), False),
    "direct layer": (lambda: DirectLayerNorm(4), True),
    "batch": (lambda: nn.BatchNorm2d(4), False),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), False),
    "group": (lambda: nn.GroupNorm(2, 4), False),
    "layer": (lambda: nn.LayerNorm(4), True),
    "rms": (lambda: nn.RMSNorm(4), True),
}


class Normed(nn.Module):
    def __init__(self, norm: nn.Module, trailing: bool) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(2, 4, 1), norm, nn.Conv2d(4, 3, 1)
        self.trailing = trailing

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.trailing else self.norm(x)
        return self.second(x)


@pytest.mark.parametrize("name", NORMS)
def test_a_zero_scale_cuts_its_channel(name):
    make, trailing = NORMS[name]
    model = Normed(make(), trailing)
    example = torch.zeros(1, 2, 3, 3)
    masks = full(model)
    assert flow(model, masks, example).effective_density == 1
    scale = torch.tensor([True, False, True, True])
    by_mask = flow(model, {**masks, "norm.weight": scale}, example)
    assert by_mask.dead == {"first.weight": (1,), "second.weight": ()}
    assert not by_mask.effective["second.weight"][:, 1].any()
    with torch.no_grad():
        model.norm.weight[1] = 0
        assert flow(model, masks, example) == by_mask
        model.norm.weight.zero_()
    assert flow(model, masks, example).effective_density == 1  # a residual branch at its start
    assert flow(model, {**masks, "norm.weight": ~(scale | True)}, example).effective_density == 0


ACTIVATIONS = [
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.Hardswish, nn.Mish, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Hardtanh, nn.Dropout),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, nn.Softmax, nn.LogSoftmax, nn.AlphaDropout),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_passes(activation):
    act = activation(dim=1) if "Softmax" in activation.__name__ else activation()
    model = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 2))
    masks = full(model)
    masks["0.weight"][1] = False
    found = flow(model, masks, torch.zeros(1, 3))
    # What is not 0 at 0 passes a constant where nothing arrives.
    constant = bool(act.eval()(torch.zeros(1, 4)).any())
    assert found.effective["0.weight"].equal(masks["0.weight"])
    assert found.effective["2.weight"].tolist() == [[True, constant, True, True]] * 2


def in_place(x: Tensor) -> Tensor:
    y = x.clone().relu_()
    y += x
    y *= 2
    y /= 2
    y -= x
    y **= 2
    y.sigmoid_().mul_(x).sub_(1).div_(3)
    F.hardsigmoid(y[:, :1], inplace=True)
    y[:, 1:] = x[:, 1:]
    return y


def rms_norm(x: Tensor) -> Tensor:
    return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x)


FUNCTIONS = {
    "arithmetic": lambda x: 1 - (2 / (x - 3)) * -x + 2**x + x**2 + x @ torch.randn(4, 4),
    "in place": in_place,
    "in place sum": lambda x: (y := torch.zeros_like(x), y.add_(x))[0],
    "rms norm": rms_norm,
    "layer norm": lambda x: (x - x.mean(-1, keepdim=True)) / (x.norm(dim=-1, keepdim=True) + 1e-6),
    "standard deviation": lambda x: x / (x.std(-1, keepdim=True) + 1e-6) + x / x.var(1, unbiased=False)[:, None],
    "no grad": lambda x: torch.no_grad()(lambda: x * 1)().detach().data,
    "einsum": lambda x: torch.einsum("nc,cd->nd", x, -torch.ones(4, 4)),
    "addmm": lambda x: torch.addmm(torch.zeros(4), x, torch.ones(4, 4), beta=0.5),
    "addcmul": lambda x: torch.addcmul(x, x, torch.ones(4), value=2),
    "split": lambda x: torch.cat([part.unsqueeze(1) for part in x.split(2, 1)], 2).squeeze(1),
    "unbind": lambda x: torch.stack(list(x.T), 1),
    "max": lambda x: x.max(1, keepdim=True)[0].expand(-1, 4),
    "max of all": lambda x: x.max().expand(1, 4),
    "amax": lambda x: x.amax(1, keepdim=True).expand(-1, 4),
    "max of two": lambda x: torch.max(x[:, :2], -x[:, 2:]).repeat(1, 2),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x) + x.masked_fill(x < 0, -1e9),
    "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "normalize": lambda x: F.normalize(x) + F.local_response_norm(x[:, :, None], 2)[:, :, 0],
    "pooling": lambda x: F.max_pool1d(F.pad(x, (1, 1), value=-torch.inf), 3, 1),
    "upsampling": lambda x: F.interpolate(x[:, None], scale_factor=2, mode="linear")[:, 0, ::2],
    "dtype": lambda x: torch.linalg.vector_norm(x.half().to(torch.float32)[..., None], dim=-1).clamp(max=0.1).round(),
    "attention": lambda x: F.scaled_dot_product_attention(*[x[:, None, None]] * 3, is_causal=True)[:, 0, 0],
    "shapes": lambda x: x.reshape(len(x), -1) + torch.zeros_like(x) if x.requires_grad and x.is_floating_point() else x,
}


class Calling(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 1
        return self.second(self.function(self.first(x)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_passes(name):
    model = Calling(FUNCTIONS[name])
    assert flow(model, full(model), torch.zeros(2, 3)).effective_density == 1


class Biased(nn.Module):
    def __init__(self, add) -> None:
        super().__init__()
        self.first, self.second, self.add = nn.Linear(3, 4), nn.Linear(4, 2), add
        self.bias, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.register_buffer("table", torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.add(self, self.first(x)))


@pytest.mark.parametrize(
    "add",
    [
        lambda self, x: x + 2 * self.bias,
        lambda self, x: self.shift + x,
        lambda self, x: x.add_(self.shift.view(1, 4)),
        lambda self, x: x - self.table,
        lambda self, x: F.linear(x, torch.eye(4), self.shift),
        lambda self, x: torch.addmm(self.shift, x, torch.eye(4)),
        lambda self, x: F.conv1d(x[:, :, None], torch.eye(4)[:, :, None], self.shift)[:, :, 0],
    ],
)
def test_a_bias_passes_nothing(add):
    model = Biased(add)
    masks = full(model)
    masks["first.weight"][1] = False
    assert flow(model, masks, torch.zeros(1, 3)).effective["second.weight"].tolist() == [[True, False, True, True]] * 2


def test_random_numbers_are_not_drawn():
    model = Calling(lambda x: x + torch.randn_like(x))
    before = torch.get_rng_state()
    assert flow(model, full(model), torch.zeros(1, 3)).effective_density == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_units_of_transposed_convolutions_and_embeddings():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False))
    masks = {"0.weight": torch.ones(4, 3, 3, 3, dtype=torch.bool)}
    masks["0.weight"][2:, 1] = False  # of the second group, its second output
    found = flow(model, masks, torch.zeros(1, 4, 2, 2))
    assert (found.layers[0].units, found.dead) == (6, {"0.weight": (4,)})
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    masks = {"0.weight": torch.ones(9, 4, dtype=torch.bool), "1.weight": torch.ones(3, 4, dtype=torch.bool)}
    masks["1.weight"][:, 2] = False
    found = flow(model, masks, torch.tensor([[1, 2, 3]]))
    assert (found.layers[0].units, found.dead["0.weight"]) == (4, (2,))
    # Every entry of the table might be asked for.
    assert found.effective["0.weight"].tolist() == [[True, True, False, True]] * 9


def test_a_tied_weight_is_effective_where_either_use_is():
    model = Tied()
    masks = {
        "embedding.weight": torch.ones(11, 6, dtype=torch.bool),
        "body.weight": torch.zeros(6, 6, dtype=torch.bool),
    }
    masks["body.weight"][4, 1] = True
    found = flow(model, masks, torch.tensor([[1, 2]])).effective["embedding.weight"]
    assert found.tolist() == [[i in (1, 4) for i in range(6)]] * 11


class Many(nn.Module):
    def __init__(self, pack) -> None:
        super().__init__()
        self.one, self.two, self.pack = nn.Linear(3, 2), nn.Linear(3, 2), pack

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.pack(self.one(x), self.two(y))


@pytest.mark.parametrize(
    "pack", [lambda a, b: (a, [b, None]), lambda a, b: {"a": a, "b": {"c": b}, "n": 3}, lambda a, b: (a.argsort, b, a)]
)
def test_several_inputs_and_outputs(pack):
    model = Many(pack)
    x = torch.zeros(2, 3)
    assert flow(model, full(model), (x, x)).effective_density == 1
    assert flow(model, full(model), {"y": x, "x": x}).effective_density == 1


def hooked() -> nn.Linear:
    layer = nn.Linear(3, 4)
    layer.register_full_backward_hook(lambda *_: None)
    return layer


def old_spectral_norm() -> nn.Linear:
    layer = nn.utils.spectral_norm(nn.Linear(3, 4))
    layer(torch.ones(1, 3))  # leaves a computed weight behind, which cannot be copied deeply
    return layer


UNUSUAL = {
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(3, 4)),
    "old spectral norm": old_spectral_norm,
    "compiled": lambda: torch.compile(nn.Linear(3, 4)),
    "backward hook": hooked,
    "bfloat16": lambda: nn.Linear(3, 4).bfloat16(),
    "frozen": lambda: nn.Linear(3, 4).requires_grad_(False),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_layers_flow(name):
    model = nn.Sequential(UNUSUAL[name](), nn.ReLU(), nn.Linear(4, 2))
    masks = full(model)
    masks["2.weight"][0, 1:] = False
    with torch.inference_mode():
        found = flow(model, masks, torch.zeros(1, 3))
    assert found.effective == masks
    assert flow(torch.compile(model), masks, torch.zeros(1, 3)) == found


def test_what_no_density_counts_is_not_counted():
    model = NETWORKS["residual"][0]()
    masks = {**full(model), "norm.weight": torch.ones(8, dtype=torch.bool)}
    found = flow(model, Masks(masks, uncounted=["head.weight"]), torch.zeros(1, 1, 6, 6))
    assert [layer.name for layer in found.layers] == ["stem.weight", "block.0.weight"]


def state(model: nn.Module) -> tuple[dict[str, object], dict[str, Tensor]]:
    """What identifies the tensors and modules of a model, and copies of what the tensors contain."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    identity: dict[str, object] = {
        name: (id(t), t.dtype, t._version, t.requires_grad, id(t.grad)) for name, t in tensors.items()
    }
    for name, module in model.named_modules():
        identity["module " + name] = (id(module), module.training, list(module._forward_pre_hooks), list(vars(module)))
    gradients = {name + " gradient": t.grad.clone() for name, t in tensors.items() if t.grad is not None}
    return identity, {**{name: t.detach().clone() for name, t in tensors.items()}, **gradients}


@pytest.mark.parametrize("carries", ["nothing", "hold", "learn", "part"])
def test_the_model_stays_as_it_is(carries):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Sequential(nn.Conv2d(4, 3, 3))
    )
    example = torch.randn(2, 2, 6, 6)
    masks = random_masks(model, 0.5, 0)
    model(example).sum().backward()
    if carries == "hold":
        supermask.hold(model, masks)
    elif carries == "learn":
        supermask.learn(model, density=0.5)
    elif carries == "part":
        supermask.hold(model[4], random_masks(model[4], 0.5, 1))
    identity, contents = state(model)
    random_state, given = torch.get_rng_state(), example.clone()
    with torch.no_grad():
        assert flow(model, full(model), example).effective_density == 1  # whatever the model carries itself
        assert not torch.is_grad_enabled()
    identity_after, contents_after = state(model)
    assert identity_after == identity
    assert contents_after.keys() == contents.keys()
    assert all(torch.equal(contents_after[name], content) for name, content in contents.items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(example, given)
    if carries in ("hold", "learn"):
        supermask.check(model)


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return -grad


REFUSED = {
    "recurrent": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 2)), "recurrent gates and TorchScript: 1"),
    "topk": (lambda: Calling(lambda x: x.topk(4)[0]), "topk: its paths are not known"),
    "argmax": (lambda: Calling(lambda x: x * F.one_hot(x.argmax(1), 4)), "argmax: its paths are not known"),
    "own derivative": (lambda: Calling(Step.apply), "in an autograd.Function"),
    "inference": (lambda: Calling(torch.inference_mode()(lambda x: x * 2)), "inference_mode|[Ii]nference"),
    "negative derivative": (lambda: Calling(lambda x: x.register_hook(torch.neg) and x), "negative numbers"),
    "negative": (
        lambda: Calling(lambda x: torch.cat([x[:, :3], torch.full((len(x), 1), -2.0)], 1)),
        "negative numbers",
    ),
    "fourier": (lambda: Calling(lambda x: torch.fft.fft(x).real), "fft.fft: its paths are not known"),
    "input": (lambda: nn.Sequential(nn.Linear(5, 2)), "cannot be followed on the example input: .*shapes"),
    "no output": (lambda: Calling(lambda x: x).register_forward_hook(lambda *_: 3) and Silent(), "no floating-point"),
}


class Silent(Calling):
    def __init__(self) -> None:
        super().__init__(lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name):
    make, message = REFUSED[name]
    model = make()
    with pytest.raises(ValueError, match=message):
        flow(model, full(model), torch.zeros(1, 3))


def test_masks_that_do_not_fit_are_refused():
    model = perceptron()
    with pytest.raises(ValueError, match=r"0.weight has shape \[9, 12\], its mask \[9, 11\]"):
        flow(model, {"0.weight": torch.ones(9, 11, dtype=torch.bool)}, torch.zeros(1, 12))
    with pytest.raises(ValueError, match=r"two or more dimensions, got 0.bias"):
        flow(model, {"0.bias": torch.ones(9, dtype=torch.bool)}, torch.zeros(1, 12))


def test_a_flow_is_a_value():
    model = perceptron()
    found = flow(model, full(model), torch.zeros(1, 12))
    assert found == flow(model, full(model), torch.ones(4, 12))
    assert isinstance(found, Flow)
    with pytest.raises(AttributeError):
        found.layers = ()
