"""Channels followed through every kind of operation: what looks at several of them stays whole, the rest shrinks."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as vision
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d, roi_align, roi_pool

import supermask
from supermask.choosing.coupling import couple
from supermask.masks.targets import find_targets
from supermask.shrinking.trials import normal_like, random_like


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Middle(nn.Module):
    """A layer in front, what is tried, and two layers behind, of which the first can always shrink."""

    def __init__(self, middle: Callable[[Middle, Tensor], Tensor], out: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.front, self.middle = nn.Conv2d(3, 8, 3, padding=1), middle
        self.back, self.last = nn.Conv2d(out, 8, 1), nn.Conv2d(8, 4, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.back(self.middle(self, self.front(x).relu())).relu())


class Affine(nn.Module):
    """A scale and a shift of each channel, as buffers or as parameters."""

    def __init__(self, kind: type[Tensor]) -> None:
        super().__init__()
        made = nn.Buffer if kind is Tensor else nn.Parameter
        self.scale, self.shift = made(torch.rand(1, 8, 1, 1) + 0.5), made(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.shift) * self.scale


def shuffle(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def fill_halves(self: Middle, x: Tensor) -> Tensor:
    both = x.new_zeros(len(x), 2 * x.shape[1], *x.shape[2:])
    both[:, : x.shape[1]], both[:, x.shape[1] :] = x, 2 * x
    return both


def gate(self: Middle, x: Tensor) -> Tensor:
    opening, value = x.chunk(2, 1)
    return value * opening.sigmoid()


def split_and_join(self: Middle, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([first, second, second + self.layer(second)], 1)


def scale_some(self: Middle, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :4] *= 2
    return x


def excite(self: Middle, x: Tensor) -> Tensor:
    return x * self.layer(x.mean((2, 3), keepdim=True).relu()).sigmoid()


def attend_locally(self: Middle, x: Tensor) -> Tensor:
    return x * self.layer(x.mean((2, 3))[:, None])[:, 0, :, None, None].sigmoid()


def call_layer(self: Middle, x: Tensor) -> Tensor:
    return self.layer(x)


def over_channels(layer: nn.Module) -> Callable[[Middle, Tensor], Tensor]:
    return lambda self, x: layer(x[:, None])[:, 0]


def conv(out: int = 8, **more: object) -> dict[str, nn.Module]:
    return {"layer": nn.Conv2d(8, out, 3, padding=1, **more)}


SEVERAL = "looks at several channels at once"
FIXED = "joins them to numbers of a fixed width"
COUNTS = "with fewer channels its outputs are others: something in it counts on its width"
FAILS = "with fewer channels the model does not run: "
# What is tried, the width behind it, its layers, and why the channels in front stay; where they go, how many of 8.
KINDS: dict[str, tuple[Callable[[Middle, Tensor], Tensor], int, dict[str, nn.Module], str | int]] = {
    # neighbours
    "local response norm": (call_layer, 8, {"layer": nn.LocalResponseNorm(3)}, f"layer (LocalResponseNorm) {SEVERAL}"),
    "pool over channels": (over_channels(nn.AvgPool3d((3, 1, 1), 1, (1, 0, 0))), 8, {}, SEVERAL),
    "max pool over channels": (over_channels(nn.MaxPool3d((2, 1, 1))), 4, {}, SEVERAL),
    "adaptive pool over channels": (
        lambda self, x: F.adaptive_avg_pool2d(x.transpose(1, 3), (None, 4)).transpose(1, 3), 4, {}, SEVERAL,
    ),
    "maxout": (lambda self, x: x.unflatten(1, (4, 2)).amax(2), 4, {}, SEVERAL),
    "softmax": (lambda self, x: x.softmax(1), 8, {}, SEVERAL),
    "group norm": (call_layer, 8, {"layer": nn.GroupNorm(2, 8)}, SEVERAL),
    "layer norm": (lambda self, x: self.layer(x.movedim(1, -1)).movedim(-1, 1), 8, {"layer": nn.LayerNorm(8)}, SEVERAL),
    "normalize": (lambda self, x: F.normalize(x, dim=1), 8, {}, SEVERAL),
    "mean": (lambda self, x: x - x.mean(1, keepdim=True), 8, {}, SEVERAL),
    "largest": (lambda self, x: x * x.amax(1, keepdim=True), 8, {}, SEVERAL),
    "running sum": (lambda self, x: x.cumsum(1), 8, {}, SEVERAL),
    "flip": (lambda self, x: x.flip(1), 8, {}, SEVERAL),
    "roll": (lambda self, x: x.roll(3, 1), 8, {}, SEVERAL),
    "sort": (lambda self, x: x.sort(1)[0], 8, {}, SEVERAL),
    "the largest few": (lambda self, x: x.topk(4, 1)[0], 4, {}, SEVERAL),
    "picked by number": (lambda self, x: x[:, [3, 2, 1, 0, 7, 6, 5, 4]], 8, {}, SEVERAL),
    "products of channels": (lambda self, x: torch.einsum("bchw,bdhw->bcd", x, x)[..., None], 8, {}, SEVERAL),
    "local attention": (attend_locally, 8, {"layer": nn.Conv1d(1, 1, 3, padding=1)}, "reads several channels at one"),
    "one times all": (lambda self, x: x * x[:, :1], 8, {}, 3),  # but for that one
    "unknown": (lambda self, x: torch.fft.rfft2(x).abs(), 8, {}, "is not known to treat channels one by one"),
    # numbers of channels
    "shuffle": (lambda self, x: shuffle(x), 8, {}, COUNTS),
    "shuffle layer": (call_layer, 8, {"layer": nn.ChannelShuffle(2)}, COUNTS),
    "pixel shuffle": (lambda self, x: F.pixel_shuffle(x, 2), 2, {}, 4),
    "pixel unshuffle": (lambda self, x: F.pixel_unshuffle(x, 2), 32, {}, 4),
    "space to depth": (
        lambda self, x: torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1), 32, {}, 4,
    ),
    "einops to depth": (call_layer, 32, {"layer": Rearrange("b c (h p) (w q) -> b (c p q) h w", p=2, q=2)}, 4),
    "einops to space": (call_layer, 2, {"layer": Rearrange("b (c p q) h w -> b c (h p) (w q)", p=2, q=2)}, 4),
    "einops pool": (call_layer, 8, {"layer": Reduce("b c (h p) (w q) -> b c h w", "mean", p=2, q=2)}, 4),
    "unfold": (lambda self, x: F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:]), 72, {}, 4),
    "gate": (gate, 4, {}, 4),
    "gated linear unit": (lambda self, x: F.glu(x, 1), 4, {}, 4),
    "chunks": (split_and_join, 12, {"layer": nn.Conv2d(4, 4, 1)}, 4),
    "split by number": (
        lambda self, x: torch.cat([x.split([4, 4], 1)[0], self.layer(x.split([4, 4], 1)[1])], 1), 8,
        {"layer": nn.Conv2d(4, 4, 1)}, FAILS,
    ),
    "view by number": (lambda self, x: x.reshape(len(x), 8, *x.shape[2:]), 8, {}, FAILS),
    "some by number": (scale_some, 8, {}, COUNTS),
    "half of a concatenation": (lambda self, x: torch.cat([x, self.layer(x)], 1)[:, :8], 8, conv(), FAILS),
    "filled": (fill_halves, 16, {}, 4),
    "stacked": (lambda self, x: torch.stack([x, 2 * x], 2).flatten(1, 2), 16, {}, 4),
    "repeated": (lambda self, x: x.repeat(1, 2, 1, 1), 16, {}, 4),
    "padded shortcut": (
        lambda self, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.layer(x), 16, conv(16, stride=2), 4,
    ),
    # tensors that belong to channels
    "frozen batch norm": (call_layer, 8, {"layer": FrozenBatchNorm2d(8)}, f"layer (FrozenBatchNorm2d) {FIXED}"),
    "affine of buffers": (call_layer, 8, {"layer": Affine(Tensor)}, f"layer (Affine) {FIXED}"),
    "affine of parameters": (call_layer, 8, {"layer": Affine(nn.Parameter)}, f"layer (Affine) {FIXED}"),
    "pixel means": (lambda self, x: x - torch.full((8, 1, 1), 0.4), 8, {}, FIXED),
    "computed weight": (call_layer, 8, {"layer": parametrizations.weight_norm(nn.Conv2d(8, 8, 1))}, "computed or shared"),
    "functional weight": (lambda self, x: F.conv2d(x, 2 * self.layer.weight), 8, conv(), "computed or shared"),
    "matrix": (lambda self, x: torch.einsum("bchw,cd->bdhw", x, torch.eye(8)), 8, {}, "computed or shared"),
    "batch norm": (call_layer, 8, {"layer": nn.BatchNorm2d(8)}, 4),
    "instance norm": (call_layer, 8, {"layer": nn.InstanceNorm2d(8)}, 4),
    "instance norm of its own": (call_layer, 8, {"layer": nn.InstanceNorm2d(8, affine=True)}, 4),
    "prelu": (call_layer, 8, {"layer": nn.PReLU(8)}, 4),
    # what treats channels one by one
    "dropout": (call_layer, 8, {"layer": nn.Dropout2d()}, 4),
    "one number": (lambda self, x: (x - torch.tensor(0.4)) / 0.2, 8, {}, 4),
    "narrow inside": (lambda self, x: x.half().float(), 8, {}, 4),
    "circular": (call_layer, 8, conv(padding_mode="circular"), 4),
    "larger": (lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear"), 8, {}, 4),
    "excitation": (excite, 8, {"layer": nn.Conv2d(8, 8, 1)}, 4),
    "where": (lambda self, x: torch.where(x > 0.1, x, 0.0).masked_fill(x < 0.2, 0.5), 8, {}, 4),
    # groups
    "groups": (call_layer, 8, conv(groups=2), 4),
    "depthwise": (call_layer, 8, conv(groups=8), 4),
    "two of each channel": (call_layer, 16, conv(16, groups=8), 4),
    "groups of a concatenation": (
        lambda self, x: self.layer(torch.cat([x, 2 * x], 1)), 8, {"layer": nn.Conv2d(16, 8, 1, groups=2)}, 4,
    ),
    "transposed groups": (call_layer, 8, {"layer": nn.ConvTranspose2d(8, 8, 2, groups=2)}, 4),
    "linear": (lambda self, x: self.layer(x.movedim(1, -1)).movedim(-1, 1), 8, {"layer": nn.Linear(8, 8)}, 4),
    "twice": (lambda self, x: self.layer(self.layer(x).relu()), 8, conv(), 4),
}  # fmt: skip


def randomize(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    None if tensor is None else tensor.uniform_(0.5, 1.5)
            elif isinstance(module, FrozenBatchNorm2d):
                for tensor in module.buffers():
                    tensor.uniform_(0.5, 1.5)
    return net.eval()


@torch.no_grad()
def gap(net: nn.Module, masks: supermask.Masks, small: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> float:
    """The largest relative difference to the masked network, on pixels and on small and negative numbers."""
    held, worst = copy.deepcopy(net), 0.0
    supermask.hold(held, masks)
    for scale in (1e-3, 1.0, 255.0, -255.0):
        x = scale * torch.rand(8, *shape)
        expected = held(x)
        assert expected.any()
        worst = max(worst, float((small(x) - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if place % 10 else ()) for place, kind in enumerate(KINDS)]
)
def test_what_looks_at_several_channels_stays_and_the_rest_shrinks(kind):
    torch.manual_seed(0)
    middle, width, layers, expected = KINDS[kind]
    net, x = randomize(Middle(middle, width, **copy.deepcopy(layers))), torch.randn(2, 3, 8, 8)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    found = supermask.shrink(net, masks, x)
    assert gap(net, masks, found.model) <= 1e-5
    assert len(found.removed["back.weight"]) == 4, "one layer never gives up the whole network"
    if isinstance(expected, int):
        assert len(found.removed["front.weight"]) == expected
        assert found.left_whole.keys() <= {"last.weight", "layer.weight"}
        return
    assert "front.weight" not in found.removed
    assert expected in found.left_whole["front.weight"]
    dropped = int((~masks["front.weight"].flatten(1).any(1)).sum())
    told = f"{dropped} of 8: {found.left_whole['front.weight']}"
    assert found.kept_constant.get("front.weight") == (told if dropped else None)
    # Masks drop what can be 0 without a trace only; what the trace cannot know it drops.
    assert bool(dropped) == ("front.weight" not in masks.left_whole)


def test_what_is_left_whole_is_named_by_masks_too():
    net, x = Middle(*KINDS["softmax"][:2]), torch.randn(2, 3, 8, 8)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    assert masks.left_whole == {
        "front.weight": f"softmax in the model (Middle) {SEVERAL}",
        "last.weight": "they are outputs of the network",
    }
    assert supermask.prune(net, 0.5).left_whole == {}
    net.back = nn.Identity()
    with pytest.raises(
        ValueError, match=r"as channels: front.weight, last.weight; .*front.weight: softmax in the model"
    ):
        supermask.prune(net, 0.5, granularity="filter", example_input=x)


def test_a_channel_of_pixels_counts_for_its_neighbours_in_the_final_check(monkeypatch):
    """Were the trace wrong, the inputs of many sizes would show it."""
    torch.manual_seed(0)
    net, x = Middle(*KINDS["local response norm"][:2], layer=nn.LocalResponseNorm(2)), torch.rand(2, 3, 8, 8)
    masks = {"front.weight": torch.arange(8)[:, None, None, None].expand(8, 3, 3, 3) % 2 == 0}
    masks["front.bias"] = masks["front.weight"][:, 0, 0, 0]

    def couple_blindly(model, *rest):
        right, model.layer = model.layer, nn.Identity()
        found = couple(model, *rest)
        model.layer = right
        return found

    monkeypatch.setattr("supermask.shrinking.compaction.couple", couple_blindly)
    monkeypatch.setattr("supermask.shrinking.compaction.find_culprits", lambda _: {})
    with pytest.raises(ValueError, match="not equal to the masked one: outputs differ by 0"):
        supermask.shrink(net.eval(), masks, x, tolerance=1e-3)
    monkeypatch.setattr("supermask.shrinking.verification.SIZES", (random_like, normal_like))
    assert supermask.shrink(net, masks, x, tolerance=1e-3).removed, "in numbers near 1 nobody sees it"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(vision.resnet18, marks=pytest.mark.slow),
        pytest.param(vision.densenet121, marks=pytest.mark.slow),
        pytest.param(vision.mobilenet_v3_small, marks=pytest.mark.slow),
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_dropped_is_a_constant_wherever_it_is_read(make):
    """Two networks of other weights and the same masks, on other inputs, read the same of dropped channels."""
    torch.manual_seed(0)
    net, x = make(num_classes=5).eval(), torch.randn(2, 3, 32, 32)
    masks = supermask.prune(net, 0.5, "random", granularity="filter", example_input=x)
    coupled = couple(net, find_targets(net), x)
    seen: list[dict[tuple[str, int], Tensor]] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        other = copy.deepcopy(net)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.uniform_(-1, 1)
                parameter.mul_(masks.get(name, torch.tensor(1.0)))
        held: dict[tuple[str, int], Tensor] = {}
        seen.append(held)
        for key, group in coupled.groups.items():
            drop = ~masks[key].movedim(0, 0).flatten(1).any(1)
            dropped = torch.zeros(group.channels, dtype=torch.bool)
            dropped[group.rows[key][1]] = drop[group.rows[key][0]]
            for number, member in enumerate(group.members):
                places = [p for p, c in zip(member.places, member.channels, strict=True) if dropped[c]]
                if not member.writes:
                    axis = -1 if isinstance(member.module, nn.Linear) else 1

                    def keep(_module, inputs, axis=axis, places=places, at=(key, number), held=held):
                        held[at] = inputs[0].movedim(axis, -1)[..., places]

                    other.get_submodule(member.path).register_forward_pre_hook(keep)
        with torch.no_grad():
            other(torch.randn(2, 3, 32, 32))
    assert sum(each.numel() for each in seen[0].values()) > 100
    assert all(torch.equal(seen[0][at], seen[1][at]) for at in seen[0])


# --- outputs of every form


@dataclasses.dataclass
class Answer:
    first: Tensor
    second: Tensor


class Given:
    """A kind of output of its own."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second


def of_transformers(first: Tensor, second: Tensor) -> object:
    outputs = import_module("transformers.modeling_outputs")  # takes longer than PyTorch
    return outputs.SequenceClassifierOutput(logits=first, hidden_states=(second,))


FORMS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"a": a, "b": b},
    "dataclass": Answer,
    "nested": lambda a, b: {"a": (torch.zeros(1), [a]), "b": Answer(b, None)},
    "transformers": of_transformers,
    "class": Given,
}


class Heads(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.body, self.form = nn.Sequential(nn.Linear(20, 20), nn.ReLU()), FORMS[form]
        self.one, self.two = nn.Linear(20, 3), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> object:
        x = self.body(x)
        return self.form(self.one(x), self.two(x))


@pytest.mark.parametrize("form", FORMS)
def test_all_heads_count(form):
    torch.manual_seed(0)
    net, x = Heads(form), torch.ones(2, 20)
    by_flow = supermask.prune(net, 0.3, "synflow", example_input=x, rounds=3)
    summed = Heads("tuple")
    summed.load_state_dict(net.state_dict())
    assert by_flow == supermask.prune(summed, 0.3, "synflow", example_input=x, rounds=3)
    assert all(by_flow.densities[f"{head}.weight"] > 0.2 for head in ("one", "two"))
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    assert masks["one.weight"].all() and masks["two.weight"].all()
    found = supermask.shrink(net, masks, x)
    assert len(found.removed["body.0.weight"]) == 10 and list(found.removed) == ["body.0.weight"]
    flow = supermask.flow.flow(net, {"body.0.weight": masks["body.0.weight"], "two.weight": masks["two.weight"]}, x)
    assert not flow.dead["two.weight"]


def test_a_second_head_that_differs_is_no_speedup(monkeypatch):
    from supermask.sparse import accelerate

    net, x = Heads("dict").eval(), torch.randn(2, 20)
    monkeypatch.setattr(
        accelerate,
        "_choose",
        lambda net, name, *_: net.two.weight.mul_(2) and accelerate.LayerChoice(name, "csr", 1.0, {}, {}),
    )
    told = supermask.speedup_of(supermask.accelerate(net, example_input=x, candidates="columns", seconds=0.01))
    assert all(row.chosen == "dense" and "differ by" in row.refused["csr"] for row in told.layers)


# --- types and numbers


@pytest.mark.parametrize("narrow", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_that_casts_inside_is_compared_without_rounding(narrow):
    net = Middle(lambda self, x: self.layer(x.to(narrow).float()) + torch.zeros(1, dtype=torch.float32), **conv())
    x = torch.randn(2, 3, 8, 8)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    found = supermask.shrink(net, masks, x)
    assert len(found.removed["front.weight"]) == 4 and found.exact_difference < 1e-12
    assert all(parameter.dtype == torch.float32 for parameter in found.model.parameters())
    assert torch.get_default_dtype() == torch.float32


class Deciding(Middle):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_a_model_that_ends_in_argmax():
    net, x = Deciding(lambda self, x: x), torch.randn(2, 3, 8, 8)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    found = supermask.shrink(net, masks, x)
    assert len(found.removed["front.weight"]) == 4 and found.left_whole.keys() == {"last.weight"}
    held = copy.deepcopy(net)
    supermask.hold(held, masks)
    assert torch.equal(found.model(x), held(x))
    with torch.no_grad():
        net.last.weight.zero_()
        net.last.bias.zero_()
    with pytest.raises(ValueError, match="gives 0 for random inputs, which proves nothing"):
        supermask.shrink(net, masks, x)
    with pytest.raises(ValueError, match="output is a tensor of shape .*expected a tensor of floating-point numbers"):
        supermask.prune(net, 0.5, "synflow", example_input=x)


def test_numbers_that_are_none():
    net, x = Middle(lambda self, x: x), torch.randn(2, 3, 8, 8)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    wall = copy.deepcopy(net)  # infinite in some places whatever the network does
    wall.last.register_forward_hook(lambda _module, _inputs, out: out.masked_fill(torch.arange(8) > 5, -torch.inf))
    assert len(supermask.shrink(wall, masks, x).removed["front.weight"]) == 4
    with torch.no_grad():
        net.last.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="gives NaN or infinite numbers for every random input"):
        supermask.shrink(net, masks, x)


# --- groups


def macs(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("regnet_y_400mf", marks=pytest.mark.slow),
        pytest.param("regnet_x_400mf", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", marks=pytest.mark.slow),
    ],
)
def test_grouped_convolutions_shrink_as_others_do(name):
    torch.manual_seed(0)
    net, x = getattr(vision, name)(num_classes=10).eval(), torch.randn(1, 3, 32, 32)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    found = supermask.shrink(net, masks, x)
    assert macs(found.model, x) < 0.28 * macs(net, x)
    assert not found.kept_constant
    assert gap(net, masks, found.model, (3, 32, 32)) <= 1e-5


@pytest.mark.parametrize("density", [0.25, 0.4, 0.5, 0.75])
def test_each_group_keeps_equally_many(density):
    torch.manual_seed(0)
    net, x = Middle(call_layer, 24, layer=nn.Conv2d(8, 24, 3, groups=4)), torch.randn(1, 3, 8, 8)
    masks = supermask.prune(net, density, granularity="filter", example_input=x)
    kept = masks["layer.weight"].flatten(1).any(1).reshape(4, 6)
    assert int(kept.sum()) == int(density * 24 + 0.5)
    assert (
        kept.sum(1).max() - kept.sum(1).min() <= -(-int(kept.sum()) // 4) - int(kept.sum()) // 4 + int(kept.sum()) % 4
    )
    assert kept.sum(1).min() == int(kept.sum()) // 4
    norms = net.layer.weight.detach().abs().flatten(1).sum(1).reshape(4, 6)
    best = norms.topk(int(kept.sum()) // 4, 1).indices
    assert kept.gather(1, best).all(), "the best of each group"


def test_whole_groups_go():
    torch.manual_seed(0)
    net, x = Middle(call_layer, 8, layer=nn.Conv2d(8, 8, 3, padding=1, groups=4)).eval(), torch.randn(1, 3, 8, 8)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    for name in ("layer.weight", "layer.bias", "front.weight", "front.bias"):
        masks[name][2:4] = False
    found = supermask.shrink(net, masks, x)
    assert found.removed == {"front.weight": (2, 3), "layer.weight": (2, 3)}
    assert (found.model.layer.groups, found.model.layer.in_channels, found.model.layer.out_channels) == (3, 6, 6)
    assert gap(net, supermask.Masks(masks), found.model) <= 1e-5
    again = supermask.rebuild(Middle(call_layer, 8, layer=nn.Conv2d(8, 8, 3, padding=1, groups=4)), found.changes)
    again.load_state_dict(found.model.state_dict())
    assert torch.equal(again.eval()(x), found.model(x))


# --- how the smaller layers are


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_smaller_layers_are_laid_out_as_before_and_stay_frozen(layout):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 6, 3, bias=False), nn.Conv2d(6, 4, 3))
    net = net.to(memory_format=layout).requires_grad_(False).eval()
    masks = {"0.weight": torch.arange(8)[:, None, None, None].expand(8, 3, 3, 3) > 2}
    found = supermask.shrink(net, masks, torch.randn(2, 3, 12, 12))
    assert found.removed == {"0.weight": (0, 1, 2)} and found.model[2].bias is not None
    for parameter in found.model.parameters():
        assert not parameter.requires_grad
    for layer in (found.model[0], found.model[2]):
        assert layer.weight.is_contiguous(memory_format=layout)
        assert layer.weight.is_contiguous() == (layout == torch.contiguous_format)


def test_the_reasons_name_where():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.LocalResponseNorm(2)), nn.Conv2d(8, 4, 1))
    left = couple(net, find_targets(net), torch.randn(1, 3, 8, 8)).left_whole
    assert re.fullmatch(rf"avg_pool3d in 1\.1 \(LocalResponseNorm\) {SEVERAL}", left["0.weight"])


def test_transposed_linear_layers_shrink_as_ordinary_ones_do():
    """The Conv1D of GPT-2 beside linear layers of the same weights."""
    Conv1D = import_module("transformers.pytorch_utils").Conv1D  # noqa: N806
    ordinary = nn.Sequential(nn.Linear(6, 12), nn.Sigmoid(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    turned = nn.Sequential(Conv1D(12, 6), nn.Sigmoid(), Conv1D(10, 12), nn.ReLU(), Conv1D(4, 10))
    with torch.no_grad():
        for one, other in zip(ordinary, turned, strict=True):
            if isinstance(one, nn.Linear):
                other.weight.copy_(one.weight.T)
                other.bias.copy_(one.bias)
    x = torch.randn(3, 6)
    masks = supermask.prune(ordinary, 0.5, granularity="filter", example_input=x)
    found = supermask.prune(turned, 0.5, granularity="filter", example_input=x)
    assert {name: mask.T.tolist() for name, mask in found.items() if mask.dim() > 1} == {
        name: mask.tolist() for name, mask in masks.items() if mask.dim() > 1
    }
    one, other = supermask.shrink(ordinary, masks, x), supermask.shrink(turned, found, x)
    assert one.removed == other.removed
    # The sigmoid of nothing is a half: it goes into the bias of the layer behind.
    assert [(layer.nx, layer.nf) for layer in other.model if isinstance(layer, Conv1D)] == [(6, 6), (6, 5), (5, 4)]
    torch.testing.assert_close(other.model(x), one.model(x))
    again = supermask.rebuild(copy.deepcopy(turned), other.changes)
    again.load_state_dict(other.model.state_dict())
    torch.testing.assert_close(again(x), one.model(x))


def test_where_nothing_can_be_dropped_what_is_no_target_is_named_too():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    named = r"2.weight: they are outputs.*no targets are 0.parametrizations.* \(parametrized\)"
    with pytest.raises(ValueError, match=named):
        supermask.prune(net, 0.5, granularity="filter", example_input=torch.randn(2, 6))


def test_a_tied_weight_is_said_to_be_shared():
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 9, bias=False))
    net[4].weight = net[0].weight
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=torch.arange(9))
    assert masks.left_whole["0.weight"] == "2 layers share it"
    assert "1.weight" not in masks.left_whole


class Regions(nn.Module):
    """Regions are cut out where the first channels are large, as many as there are such places: none, it may be."""

    def __init__(self, cut: Callable[..., Tensor]) -> None:
        super().__init__()
        self.cut = cut
        self.features, self.where = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.hidden, self.boxes = nn.Linear(32, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).relu()
        corner = (self.where(x)[:, 0] > 0).nonzero()
        regions = torch.stack(
            [corner[:, 0], *[corner[:, 1 + d] for d in (1, 0)], *[corner[:, 1 + d] + 2 for d in (1, 0)]], 1
        )
        return self.boxes(self.hidden(self.cut(x, regions.to(x.dtype), (2, 2)).flatten(1)).relu())


@pytest.mark.parametrize("cut", [roi_align, roi_pool])
def test_regions_as_many_as_the_data_say_shrink(cut):
    torch.manual_seed(0)
    net = Regions(cut).eval()
    x = torch.randn(2, 3, 6, 6)
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    found = supermask.shrink(net, masks, x)
    assert {name: len(gone) for name, gone in found.removed.items()} == {"features.weight": 4, "hidden.weight": 6}
    assert found.model(x).shape[0] > 1
    nothing = Regions(cut).eval()
    with torch.no_grad():
        nothing.where.bias.fill_(-1e9)
    assert couple(nothing, find_targets(nothing), x).groups["hidden.weight"].channels == 12, "of no region at all too"
    with pytest.raises(
        ValueError, match="outputs without entries for every random input.*a detector must find something"
    ):
        supermask.shrink(nothing, masks, x)
