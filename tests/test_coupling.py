"""Channels dropped as a whole: exactly 0 where they are written, and gone without a trace where they are removed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib import import_module

import pytest
import torch
import torchvision
from torch import Tensor, nn

import supermask
from supermask import Masks
from supermask.choosing.coupling import couple
from supermask.masks.targets import NORMS, find_targets
from supermask.selection.top_k import count_kept
from ticket_search.models.resnet import resnet20
from ticket_search.models.vgg import vgg11


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 5),
    )  # fmt: skip


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(growth_rate=6, block_config=(2, 2), num_init_features=8, num_classes=5)


# The network, its input, and how many of its channels there are to drop.
SMALL = {
    "perceptron": (perceptron, (3, 8, 8), 50),
    "conv net": (conv_net, (3, 8, 8), 24),
    "densenet": (densenet, (3, 32, 32), 8 + 4 * (24 + 6) + 10),
}
LARGE = {
    "resnet20": (resnet20, (3, 32, 32), 3 * (16 + 32 + 64) + 16 + 32 + 64),
    "vgg11": (partial(vgg11, width=0.25), (3, 32, 32), 16 + 32 + 2 * 64 + 4 * 128),
    "torchvision resnet18": (
        lambda: torchvision.models.resnet18(num_classes=5),
        (3, 64, 64),
        2 * (64 + 128 + 256 + 512) + 960,
    ),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), (3, 32, 32), None),
}
NETWORKS = {
    **SMALL,
    **LARGE,
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=5), (3, 32, 32), 10240),
}
# Residual sums are those of resnet20, concatenations those of a small densenet.
LONG = ("torchvision resnet18", "densenet121")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in NETWORKS]


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The network with random norms, as after training, in float64 so that what is small is an error."""
    torch.manual_seed(0)
    build, shape, _ = NETWORKS[name]
    model = build().double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand_like(tensor) + 0.2)
    return model, torch.randn(2, *shape, dtype=torch.float64)


def dropped_rows(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """By module: which of its outputs are dropped, read off the masks alone."""
    rows = {}
    for name, target in find_targets(model).items():
        if target.output_axis == 1 and target.groups > 1:
            assert masks[name].all(), "its filters are spread over its groups"
            continue
        mask = masks[name].movedim(target.output_axis, 0).flatten(1)
        assert (mask.all(1) | ~mask.any(1)).all(), f"{name} is dropped filter by filter"
        rows[name.rpartition(".")[0]] = ~mask.any(1)
    return rows


def check_zeros(model: nn.Module, masks: Masks, x: Tensor) -> None:
    """Run a held copy: what a dropped filter, or a norm of a dropped channel, gives is exactly 0 for every input."""
    rows = dropped_rows(model, masks)
    for name in masks.uncounted:
        module, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if isinstance(module, NORMS):
            rows[name.rpartition(".")[0]] = ~masks[name]
        else:
            assert attribute == "bias" and torch.equal(~masks[name], rows[name.rpartition(".")[0]])
    for name, module in model.named_modules():
        if hasattr(module, "conv2") and hasattr(module, "conv1"):  # the sum of a residual block
            rows[name] = rows[f"{name}.conv2"]
    seen = []

    def look(drop: Tensor) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            channels = output.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            assert not channels[drop].any(), module
            seen.append(int(drop.sum()))

        return hook

    held = copy.deepcopy(model)
    supermask.hold(held, masks)
    for name, drop in rows.items():
        held.get_submodule(name).register_forward_hook(look(drop))
    for mode in (True, False):
        held.train(mode)(x)
    assert len(seen) >= 2 * len(rows)
    assert sum(seen) > 0


@pytest.mark.parametrize("name", NAMES)
def test_dropped_channels_are_zero_wherever_they_are_written(name):
    model, x = make(name)
    masks = supermask.prune(model, 0.4, granularity="filter", example_input=x)
    check_zeros(model, masks, x)
    targets = find_targets(model)
    assert masks[targets.output].all(), "the head is whole"
    assert set(masks) == set(targets) | masks.uncounted
    assert all(masks[name].dim() == 1 for name in masks.uncounted)
    channels = sum(group.channels for group in couple(model, targets, x).groups.values())
    assert NETWORKS[name][2] in (None, channels)
    assert masks.size == targets.size, "biases and norms are not counted"
    assert any(not masks[name].all() for name in masks.uncounted)


@pytest.mark.parametrize("allocation", ["global", "layerwise", "erk", "balanced"])
def test_density_counts_channels(allocation):
    model, x = make("conv net")
    for density in (1.0, 0.37, 0.1 if allocation == "layerwise" else 1 / 24):
        masks = supermask.prune(model, density, "random", allocation, "filter", example_input=x)
        kept = {name: int((~drop).sum()) for name, drop in dropped_rows(model, masks).items()}
        assert kept.pop("9") == 5
        assert sum(kept.values()) == count_kept(density, 24) or allocation == "layerwise"
        if allocation == "layerwise":
            assert kept == {name: count_kept(density, n) for name, n in {"0": 8, "4": 6, "7": 10}.items()}


@pytest.mark.parametrize("name", ["conv net", "resnet20", "densenet"])
def test_channels_are_scored_by_the_sum_over_all_that_writes_them(name):
    model, x = make(name)
    targets = find_targets(model)
    coupled = couple(model, targets, x)
    scores = {key: target.parameter.detach() for key, target in targets.items()}
    found = coupled.reduce(scores, targets)
    written = {key: list(group.rows) for key, group in coupled.groups.items()}
    if name == "resnet20":
        first, second = ({f"stages.{stage}.{i}.conv2.weight" for i in range(3)} for stage in (0, 1))
        assert set(written["stem.weight"]) == first | {"stem.weight"}
        assert set(written["stages.1.0.conv2.weight"]) == second | {"stages.1.0.shortcut.0.weight"}
        assert written["stages.2.1.conv1.weight"] == ["stages.2.1.conv1.weight"]
    for key, rows in written.items():
        expected = sum(scores[row].flatten(1).sum(1) for row in rows)
        assert torch.allclose(found[key], expected)


def remove(model: nn.Module, masks: Masks, x: Tensor) -> nn.Module:
    """A smaller network, without the dropped channels."""
    small = supermask.bake(model).eval()
    coupled = couple(model, find_targets(model), x)
    for key in coupled.groups:
        layer = small.get_submodule(key.rpartition(".")[0])
        drop = (~masks[key].flatten(1).any(1)).nonzero().flatten().tolist()
        torch_pruning = import_module("torch_pruning")  # imports timm
        graph = torch_pruning.DependencyGraph().build_dependency(small, x, verbose=False)
        prune = (
            torch_pruning.prune_linear_out_channels
            if isinstance(layer, nn.Linear)
            else torch_pruning.prune_conv_out_channels
        )
        graph.get_pruning_group(layer, prune, drop).prune()
    return small


@pytest.mark.parametrize("name", ["conv net", "resnet20", "densenet"])
@pytest.mark.filterwarnings("ignore")
def test_removed_channels_change_no_output(name):
    model, x = make(name)
    masks = supermask.prune(model, 0.5, "random", "layerwise", "filter", example_input=x)
    supermask.hold(model, masks)
    expected = model.eval()(x)
    small = remove(model, masks, x)
    found = small(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    kept = sum(int(mask.sum()) for mask in masks.values())
    left = sum(parameter.numel() for parameter in small.parameters())
    assert left < kept, "what read the dropped channels is gone too"
    spoiled = supermask.bake(model).eval()
    with torch.no_grad():  # one kept channel more changes the output, so the comparison can fail
        next(m for m in spoiled.modules() if isinstance(m, nn.Conv2d)).weight.zero_()
    assert (spoiled(x) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["conv net", "densenet", "resnet20"])
def test_later_masks_only_shrink(name):
    model, x = make(name)
    first = supermask.prune(model, 0.6, granularity="filter", example_input=x)
    second = supermask.prune(model, 0.3, "random", granularity="filter", example_input=x, previous=first, rounds=3)
    assert second.within(first)
    assert second.uncounted == first.uncounted
    check_zeros(model, second, x)
    single = supermask.prune(model, second.density / 2, previous=second)
    assert single.within(second), "single weights of what is left; the biases stay as they are"
    assert single.uncounted == first.uncounted


# --- one block each


class Block(nn.Module):
    """A convolution in front, what is tried, and a head."""

    def __init__(self, block: Callable[[Block, Tensor], Tensor], head: int, **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(6, 6, 1), block, nn.Linear(head, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self, self.stem(x).relu()).flatten(2).mean(2))


class Returning(Block):
    """Gives what its layers write beside its answer."""

    def forward(self, x: Tensor) -> dict[str, object]:
        x = self.stem(x).relu()
        return {"logits": self.head(self.layer(x).relu().flatten(2).mean(2)), "features": [x, self.layer(x)]}


def shuffle(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def through(layer: nn.Module, width: int, block: type[Block] = Block) -> Callable[[], Block]:
    return lambda: block(lambda self, x: self.layer(x).relu(), width, layer=layer)


def gate(self: Block, x: Tensor) -> Tensor:
    opening, value = self.layer(x).chunk(2, 1)
    return value * opening.sigmoid()


def conv(outputs: int) -> nn.Conv2d:
    return nn.Conv2d(6, outputs, 1)


def of(block: Callable[[Block, Tensor], Tensor], width: int, outputs: int = 6) -> Callable[[], Block]:
    return lambda: Block(block, width, layer=conv(outputs))


# What is tried, and the tensors of which channels may go ("" for a refusal).
BLOCKS = {
    "plain": (through(conv(8), 8), "stem layer"),
    "transposed": (through(nn.ConvTranspose2d(6, 8, 2), 8), "stem layer"),
    "grouped transposed": (through(nn.ConvTranspose2d(6, 8, 2, groups=2), 8), "stem"),
    "depthwise transposed": (through(nn.ConvTranspose2d(6, 6, 2, groups=6), 6), ""),
    "grouped": (through(nn.Conv2d(6, 8, 3, groups=2), 8), "stem layer"),
    "depthwise": (through(nn.Conv2d(6, 6, 3, groups=6), 6), "stem+layer"),
    "two filters a channel": (through(nn.Conv2d(6, 12, 3, groups=6), 12), "stem layer"),
    "two channels a filter": (through(nn.Conv2d(6, 3, 3, groups=3), 3), "stem layer"),
    "layer norm of an image": (through(nn.Sequential(conv(8), nn.LayerNorm((8, 5, 5))), 8), "stem"),
    "group norm": (through(nn.Sequential(conv(8), nn.GroupNorm(2, 8)), 8), "stem layer.0"),
    "norm without scale": (through(nn.Sequential(conv(8), nn.BatchNorm2d(8, affine=False)), 8), "stem"),
    "residual": (of(lambda self, x: x + self.layer(x), 6), "stem+layer"),
    "twice": (of(lambda self, x: self.layer(self.layer(x).relu()), 6), "stem+layer"),
    "concatenation": (of(lambda self, x: torch.cat([x, self.layer(x)], 1), 10, 4), "stem layer"),
    "excitation": (of(lambda self, x: x * self.layer(x.mean((2, 3), keepdim=True)).sigmoid(), 6), "stem+layer"),
    "gate": (of(gate, 4, 8), "stem layer"),
    "shuffle": (of(lambda self, x: shuffle(x) + self.layer(x), 6), "stem+layer"),
    "features": (through(conv(8), 8, Returning), ""),
    "sum over channels": (of(lambda self, x: self.layer(x.softmax(1)), 6), "layer"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_belongs_together_in_a_block(name):
    torch.manual_seed(0)
    build, expected = BLOCKS[name]
    model, x = build(), torch.randn(2, 6, 5, 5)
    if not expected:
        with pytest.raises(ValueError, match=r"no target has filters that can be dropped as channels: stem\.weight"):
            supermask.prune(model, 0.5, granularity="filter", example_input=x)
        return
    coupled = couple(model, find_targets(model), x)
    groups = [
        "+".join(sorted((row.removesuffix(".weight") for row in group.rows), reverse=True))
        for group in coupled.groups.values()
    ]
    assert " ".join(groups) == expected
    masks = supermask.prune(model, 0.5, granularity="filter", example_input=x)
    check_zeros(model, masks, x)
    assert masks["head.weight"].all()


def test_the_input_writes_its_channels_itself():
    model = of(lambda self, x: x + self.layer(x), 6)()
    model.stem = nn.Identity()
    with pytest.raises(ValueError, match=r"no target has filters that can be dropped as channels: head\.weight, layer"):
        supermask.prune(model, 0.5, granularity="filter", example_input=torch.randn(2, 6, 5, 5))


def test_flattened_signals_of_one_dimension():
    model = nn.Sequential(nn.Conv1d(1, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 6, 3))
    x = torch.randn(2, 1, 10)
    masks = supermask.prune(model, 0.5, "random", "layerwise", "filter", example_input=x)
    check_zeros(model, masks, x)
    assert {name: int((~drop).sum()) for name, drop in dropped_rows(model, masks).items()} == {"0": 3, "2": 2, "4": 3}


def test_excluded_and_tied_layers_keep_their_partners_whole():
    model, x = make("resnet20")
    masks = supermask.prune(model, 0.5, "random", "layerwise", "filter", example_input=x, exclude="stages.1.2.conv2")
    assert masks["stages.1.0.conv2.weight"].all() and masks["stages.1.0.shortcut.0.weight"].all()
    assert not masks["stages.2.0.conv2.weight"].all()
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    tied[2].weight = tied[0].weight
    kept = supermask.prune(tied, 0.5, granularity="filter", example_input=torch.randn(2, 6))
    assert kept["0.weight"].all() and not kept["4.weight"].all()


def test_biases_that_are_targets_themselves_are_counted():
    model, x = make("conv net")
    masks = supermask.prune(model, 0.5, granularity="filter", example_input=x, include="*")
    assert masks.uncounted == set()
    check_zeros(model, masks, x)


def test_example_inputs_that_do_not_fit():
    model, x = make("conv net")
    with pytest.raises(ValueError, match="the model does not take the example input: RuntimeError"):
        supermask.prune(model, 0.5, granularity="filter", example_input=x[:, :1])
    uncoupled = supermask.prune(model, 0.5, granularity="filter")
    assert uncoupled.uncounted == set()
