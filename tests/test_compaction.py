"""A compacted network gives what the masked one gives; what goes is what lies on no path."""

import copy
import json

import pytest
import safetensors.torch
import torch
import torchvision.models as vision
from products import thin
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import supermask
from supermask import Masks, Ticket, TicketError, compact, make_state, rebuild, shrink
from supermask.shrinking.flow import flow
from ticket_search.deploy.export import export
from ticket_search.models.conv import conv2, conv4
from ticket_search.models.resnet import resnet20


def randomized(net, seed=0):
    """Norms, biases and heads as after training: nothing is 0 or 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() < 2:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.5, 0.5)
            elif not parameter.any():
                parameter.normal_(0, 0.02)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def baked(net, masks):
    """The slow, obvious way: a copy whose dropped entries are 0."""
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    return net


@torch.no_grad()
def gap(one, other, *inputs):
    a, b = one(*inputs), other(*inputs)
    assert a.any()
    return float((a - b).abs().max() / a.abs().max())


def macs(net, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() // 2


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def random_masks(net, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    return Masks({name: torch.rand(p.shape, generator=generator) < density for name, p in weights.items()})


slow = pytest.mark.slow
NETWORKS = {
    "resnet20": (lambda: resnet20((3, 8, 8), 10), 8),
    "resnet18": (vision.resnet18, 32),
    "mobilenet_v3_small": (vision.mobilenet_v3_small, 32),
    "mobilenet_v2": (vision.mobilenet_v2, 32),
    "resnext50_32x4d": (vision.resnext50_32x4d, 32),
    "densenet121": (vision.densenet121, 32),
    "vit_b_16": (lambda: vision.vit_b_16(image_size=32), 32),
}
QUICK = ("resnet20",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=slow) for n in NETWORKS])
def test_dropped_filters_are_gone_and_outputs_stay(name):
    make, side = NETWORKS[name]
    net, x = randomized(make()), torch.randn(2, 3, side, side)
    masks = supermask.prune(net, 0.5, "random", granularity="filter", example_input=x, seed=1)
    before = copy.deepcopy(net.state_dict())
    found = shrink(net, masks, x)
    other = torch.randn(3, 3, side, side)
    assert gap(baked(net, masks), found.model, other) <= 1e-5
    assert found.difference <= 1e-5
    assert found.exact_difference <= 1e-12
    assert macs(found.model, x) < 0.8 * macs(net, x)
    assert parameters(found.model) < 0.8 * parameters(net)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    # Every filter that is dropped is removed.
    assert not found.kept_constant
    for key in supermask.find_targets(net):
        empty = (~masks[key].flatten(1).any(1)).nonzero().flatten().tolist() if key in masks else []
        assert list(found.removed.get(key, ())) == empty
    # The description alone makes the layers again.
    again = rebuild(make(), json.loads(json.dumps(found.changes)))
    again.load_state_dict(found.model.state_dict())
    assert torch.equal(again.eval()(other), found.model(other))


@pytest.mark.parametrize("density", [0.02, 0.1])
def test_disconnected_units_are_those_of_flow(density):
    net = conv2((1, 12, 12), 10).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    x, masks = torch.randn(2, 1, 12, 12), random_masks(net, density)
    paths, found = flow(net, masks, x), shrink(net, masks, x)
    assert {name: dead for name, dead in paths.dead.items() if dead} == found.removed
    assert found.removed
    assert not found.kept_constant
    assert gap(baked(net, masks), found.model, x) <= 1e-5
    # What is effective in the dense network is what is left: every unit of the small one is alive.
    small = found.model
    inside = Masks({name: p != 0 for name, p in small.named_parameters() if p.dim() > 1})
    left = flow(small, inside, x)
    assert not any(left.dead.values())
    assert left.effective.kept == paths.effective.kept
    assert paths.density == pytest.approx(density, rel=0.1)
    assert paths.effective_density < paths.density
    assert left.effective_density > paths.effective_density


@slow
@pytest.mark.parametrize("density", [0.02, 0.05, 0.1])
def test_disconnected_units_of_conv4(density):
    net = conv4((1, 28, 28), 10).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    x, masks = torch.randn(2, 1, 28, 28), random_masks(net, density)
    found = shrink(net, masks, x)
    assert {name: dead for name, dead in flow(net, masks, x).dead.items() if dead} == found.removed
    assert gap(baked(net, masks), found.model, x) <= 1e-5


@slow
def test_disconnected_units_of_a_learned_mask(tmp_path):
    from ticket_search import search

    run = search("edge-popup", model="conv4", data="digits", density=0.1, epochs=2, runs=tmp_path, progress=False)
    ticket, x = run.ticket, torch.randn(2, 1, 8, 8)
    paths, found = flow(ticket.model(), ticket.masks, x), ticket.shrink()
    dead = {name: units for name, units in paths.dead.items() if units}
    assert dead == found.removed and sum(map(len, dead.values())) > 50
    assert paths.effective_density < ticket.density
    assert gap(ticket.model(), found.model, x) <= 1e-5


def conv_net(**second):
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 3, **second), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*net, nn.LazyLinear(5))


def without_rows(net, **rows):
    """Masks that empty some filters; their biases stay."""
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters() if p.dim() > 1}
    for name, places in rows.items():
        masks[name.replace("_", ".")][places] = False
    return Masks(masks)


CONSTANTS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 4)), (3, 8), True),
    "linear without bias": (
        lambda: nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 4, bias=False)),
        (3, 8),
        True,
    ),
    "tokens": (lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4)), (3, 7, 8), True),
    "conv": (lambda: conv_net(bias=True), (2, 1, 9, 9), True),
    "conv without bias": (lambda: conv_net(bias=False), (2, 1, 9, 9), True),
    "conv in groups": (lambda: conv_net(groups=2), (2, 1, 9, 9), True),
    "padded circularly": (lambda: conv_net(padding=1, padding_mode="circular"), (2, 1, 9, 9), True),
    "same, one wide": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 1, padding="same")),
        (2, 1, 9, 9),
        True,
    ),
    "padded with zeros": (lambda: conv_net(padding=1), (2, 1, 9, 9), False),
    "same": (lambda: conv_net(padding="same"), (2, 1, 9, 9), False),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.ConvTranspose2d(6, 4, 3, stride=2)),
        (2, 1, 9, 9),
        False,
    ),
    "batch norm between": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.Conv2d(6, 4, 3)),
        (2, 1, 9, 9),
        True,
    ),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 81, 4)),
        (2, 1, 9, 9),
        True,
    ),
    "depthwise that pads": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)
        ),
        (2, 1, 9, 9),
        False,
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)),
        (2, 1, 9, 9),
        True,
    ),
}


@pytest.mark.parametrize("name", thin(CONSTANTS, 2))
def test_constants_go_into_the_reader_where_that_is_exact(name):
    make, shape, goes = CONSTANTS[name]
    net, x = make(), torch.randn(shape)
    net(x)
    randomized(net)
    masks = without_rows(net, **{"0_weight": [1, 4]})
    found = shrink(net, masks, x)
    assert gap(baked(net, masks), found.model, torch.randn(shape)) <= 1e-5
    assert found.exact_difference <= 1e-6  # new biases are rounded to float32
    if goes:
        assert found.removed["0.weight"] == (1, 4)
        assert found.model[0].weight.shape[0] == 4
        assert not found.kept_constant
    else:
        assert not found.removed
        assert "2 of 6" in found.kept_constant["0.weight"]
        assert parameters(found.model) == parameters(net)


def test_a_constant_of_0_goes_behind_padding_too():
    net = randomized(nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)))
    with torch.no_grad():
        net[0].bias[[1, 4]] = -1.0
    masks, x = without_rows(net, **{"0_weight": [1, 4]}), torch.randn(2, 1, 9, 9)
    found = shrink(net, masks, x)
    assert found.removed == {"0.weight": (1, 4)}
    assert gap(baked(net, masks), found.model, x) <= 1e-5


def test_removal_goes_on_upwards_and_downwards():
    net = randomized(
        nn.Sequential(
            nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)
        )
    )
    masks = without_rows(net, **{"0_weight": [0]})
    masks["2.weight"][2, 1:] = False  # reads only the constant
    masks["4.weight"][3, [0, 1, 3, 4, 5]] = False  # reads only what reads only the constant
    masks["6.weight"][:, 5] = False  # nobody reads it
    masks["4.weight"][[0, 1, 2, 4, 6], 1] = False  # read by two, one of which ends
    masks["4.weight"][3, 1] = False
    found = shrink(net, masks, torch.randn(2, 4))
    assert found.removed == {"0.weight": (0,), "2.weight": (1, 2), "4.weight": (3, 5)}
    assert gap(baked(net, masks), found.model, torch.randn(5, 4)) <= 1e-5


def test_tied_tensors_stay():
    net = randomized(
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 2))
    )
    net[2].bias = net[4].bias
    masks = without_rows(net, **{"0_weight": [1]})
    found = shrink(net, masks, torch.randn(3, 4))
    assert gap(baked(net, masks), found.model, torch.randn(3, 4)) <= 1e-5
    assert not found.removed


class Gated(nn.Module):
    """One unit multiplies another's constant: what is read is no constant, though nothing reaches it."""

    def __init__(self):
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.value(x) * torch.nn.functional.hardsigmoid(self.gate(x)))


def test_what_a_gate_multiplies_is_no_constant():
    net, x = randomized(Gated()), torch.randn(4, 4)
    masks = without_rows(net, value_weight=[0, 1])
    with torch.no_grad():
        net.gate.bias[0] = 1000.0  # open whatever the input; only what the masks say may count
    found = shrink(net, masks, x)
    assert not found.removed
    assert "depends on more" in found.kept_constant["value.weight"]
    masks = without_rows(net, value_weight=[0, 1], gate_weight=[0, 1])
    assert shrink(net, masks, x).removed == {"value.weight": (0, 1), "gate.weight": (0, 1)}


def test_a_masked_bias_that_takes_a_constant_counts_as_open():
    net = randomized(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Gated()))
    masks = dict(without_rows(net, **{"0_weight": [0]}))
    masks["2.value.weight"][0, 1:] = False  # reads only the constant
    masks["2.value.bias"] = torch.arange(6) != 0
    with torch.no_grad():
        net[2].gate.bias[0] = 1000.0
    found = shrink(net, masks, torch.randn(4, 4))
    assert found.removed == {"0.weight": (0,)}
    assert "depends on more" in found.kept_constant["2.value.weight"]


def test_units_that_no_data_activates_stay():
    net = randomized(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    with torch.no_grad():
        net[0].bias[2] = -1e6
    found = shrink(net, without_rows(net, **{"0_weight": [0]}), torch.randn(8, 4))
    assert found.removed == {"0.weight": (0,)}


def test_groups_lose_equally_many_and_a_layer_keeps_one():
    net = randomized(nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)))
    masks = without_rows(net, **{"0_weight": [0, 1, 5], "2_weight": [0, 1, 2, 3]})
    found = shrink(net, masks, torch.randn(2, 1, 4, 4))
    # Nobody reads the first half behind filters 0 to 3 of layer 2, so that group goes as a whole, and one of the other.
    assert found.removed == {"0.weight": (0, 1, 2, 3, 5), "2.weight": (0, 1, 2, 3)}
    assert (found.model[2].groups, found.model[2].in_channels, found.model[2].out_channels) == (1, 3, 4)
    assert not found.kept_constant
    assert gap(baked(net, masks), found.model, torch.randn(2, 1, 4, 4)) <= 1e-5

    net = randomized(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))
    masks = without_rows(net)
    masks["0.weight"][:2] = False
    masks["2.weight"][:, 2] = False  # collapsed: nothing reaches the output
    found = shrink(net, masks, torch.randn(2, 4))
    assert len(found.removed["0.weight"]) == 2
    assert gap(baked(net, masks), found.model, torch.randn(2, 4)) <= 1e-5


def test_held_and_learned_masks_are_the_default():
    x = torch.randn(3, 4)
    net = randomized(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    masks = without_rows(net, **{"0_weight": [0, 3]})
    supermask.hold(net, masks)
    small = compact(net, example_input=x)
    assert small[0].out_features == 6
    assert not small.training
    assert supermask.masks_of(net) == masks
    net(x).sum().backward()
    with pytest.raises(ValueError, match="carries no masks"):
        supermask.masks_of(small)
    learned = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    supermask.learn(learned, 0.05)
    assert gap(supermask.bake(learned).eval(), compact(learned, example_input=x), x) <= 1e-5


def test_errors_name_what_is_wrong():
    x, net = torch.randn(3, 4), randomized(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 3)))
    masks = without_rows(net, **{"0_weight": [0]})
    for problem, arguments in {
        "expected example_input": (net, masks),
        "carries no masks": (net, None, x),
        "no masks to compact by": (net, {}, x),
        r"no parameter '0.weigh'; did you mean '0.weight'.*2.weight has shape": (
            net,
            {"0.weigh": masks["0.weight"], "2.weight": masks["0.weight"]},
            x,
        ),
        r"nothing of 0.weight, 2.weight:": (net, {k: torch.zeros_like(masks[k]) for k in ("0.weight", "2.weight")}, x),
        r"0 \(Linear\) fails.*give an example_input": (net, masks, torch.randn(3, 5)),
    }.items():
        with pytest.raises(ValueError, match=problem):
            shrink(*arguments)
    with torch.no_grad():
        net[-1].weight.zero_()
        net[-1].bias.zero_()
    with pytest.raises(ValueError, match="proves nothing"):
        compact(net, masks, x)


class Mixing(nn.Module):
    """The mean over channels counts those that are 0: dropping them changes it, which no trace shows."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.one(x).relu()
        return self.two(hidden - hidden.mean(-1, keepdim=True))


def test_a_result_that_is_not_equal_is_refused(monkeypatch):
    net, x = randomized(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))), torch.randn(3, 4)
    masks = without_rows(net, **{"0_weight": [0, 1]})
    with monkeypatch.context() as wrong:
        # Constants that are folded wrong are not folded.
        wrong.setattr("supermask.shrinking.removal.Removal._fold", lambda *_: None)
        found = shrink(net, masks, x)
        assert not found.removed and "the outputs are others" in found.kept_constant["0.weight"]
        assert gap(baked(net, masks), found.model, x) <= 1e-5

    def spoil(net, layers):
        with torch.no_grad():
            next(net.parameters()).add_(1)
        return net

    monkeypatch.setattr("supermask.shrinking.compaction.fill", spoil)
    with pytest.raises(ValueError, match="not equal to the masked one"):
        compact(net, masks, x)


def test_channels_that_a_mean_joins_stay():
    net, x = randomized(Mixing()), torch.randn(3, 4)
    masks = without_rows(net, one_weight=[0, 1])
    with torch.no_grad():
        net.one.bias[:2] = -1.0
    found = shrink(net, masks, x)
    assert gap(baked(net, masks), found.model, x) <= 1e-5
    assert not found.removed


def test_descriptions_that_do_not_fit_name_every_problem():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    with pytest.raises(ValueError) as caught:
        rebuild(
            net,
            {
                "0": {"sizes": {"out_features": 9, "forward": 1}, "shapes": {"weight": [8]}},
                "2": {"sizes": {}, "shapes": {}},
                "1": [],
            },
        )
    for part in (
        "0.out_features is 8, cannot become 9",
        "0.forward",
        "0.weight has shape [8, 4]",
        "no module '2'",
        "1: ",
    ):
        assert part in str(caught.value)
    assert net[0].weight.shape == (8, 4)


def ticket_of(net, arguments, name="conv2"):
    masks = random_masks(net, 0.05)
    state = make_state(net.state_dict(), masks)
    meta = {"architecture": {"name": name, "arguments": arguments}}
    return Ticket(masks, {"start": state, "final": state}, meta)


def test_a_ticket_is_compacted_from_its_file_alone(tmp_path):
    arguments = {"input_shape": [1, 8, 8], "classes": 10}
    found = ticket_of(randomized(conv2((1, 8, 8), 10)), arguments)
    x = torch.randn(3, 1, 8, 8)
    small = found.compact()
    assert gap(found.model(), small, x) <= 1e-5
    assert parameters(small) < parameters(found.model())
    path = export(found, "compact", tmp_path / "small.safetensors")
    loaded = supermask.load_compact(path)
    assert torch.equal(loaded(x), small(x))
    assert not loaded.training
    assert path.stat().st_size < export(found, "safetensors", tmp_path / "all.safetensors").stat().st_size

    other = ticket_of(conv2(), {})
    with pytest.raises(ValueError, match="give example_input"):
        other.compact()


class Joined(nn.Module):
    """Two layers whose channels meet in a function that small numbers see one side of."""

    def __init__(self, join) -> None:
        super().__init__()
        self.value, self.gate, self.out, self.join = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), join

    def forward(self, x):
        return self.out(self.join(self.value(x), self.gate(x)))


@pytest.mark.parametrize(
    ("join", "bias"),
    [
        (torch.minimum, -20.0),
        (lambda value, gate: torch.relu(value + gate - 3), -20.0),
        (lambda value, gate: nn.functional.threshold(value + gate, 1, 0), 0.0),
    ],
    ids=["minimum", "shift", "threshold"],
)
def test_a_dead_zone_is_no_constant(join, bias):
    from supermask.shrinking.trials import relative_difference

    torch.manual_seed(0)
    model = Joined(join).eval()
    model.value.bias.data[:2] = bias
    masks = {"value.weight": torch.ones(6, 4, dtype=torch.bool)}
    masks["value.weight"][:2] = False
    found = supermask.shrink(model, masks, torch.randn(3, 4))
    model.value.weight.data[:2] = 0
    for scale in (1.0, 255.0, 1e4):
        x = scale * torch.randn(64, 4)
        with torch.no_grad():
            assert relative_difference([model(x)], [found.model(x)]) < 1e-5
    assert not found.removed and "value.weight" in found.kept_constant


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_constant_is_folded_in_any_type(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 4)).to(dtype).eval()
    masks = {"0.weight": torch.ones(6, 8, dtype=torch.bool)}
    masks["0.weight"][[1, 4]] = False
    found = supermask.shrink(model, masks, torch.randn(3, 8, dtype=dtype))
    assert found.removed == {"0.weight": (1, 4)} and found.model[0].weight.dtype == dtype
    assert found.exact_difference < 1e-12 and found.difference < 8 * torch.finfo(dtype).eps


def test_a_width_that_is_written_out_is_named():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 6, 3), nn.Linear(6 * 4, 3)

        def forward(self, x):
            return self.out(self.conv(x).view(-1, 6 * 4))

    model, x = Written(), torch.randn(2, 1, 4, 4)
    masks = supermask.prune(model, 0.5, granularity="filter", example_input=x)
    found = supermask.shrink(model, masks, x)
    assert not found.removed and gap(baked(model, masks), found.model, x) <= 1e-5
    assert found.left_whole["conv.weight"].startswith("with fewer channels the model does not run: ")
    assert found.kept_constant == {"conv.weight": f"3 of 6: {found.left_whole['conv.weight']}"}


def test_a_compact_file_that_is_something_else_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"nothing")
    with pytest.raises(TicketError, match="not a safetensors file"):
        supermask.load_compact(path)
    architecture = {"name": "conv2", "arguments": {"input_shape": [1, 8, 8], "classes": 10}}
    good = {"version": 1, "architecture": architecture, "changes": {}}
    for text, problem in {
        "{": "is not JSON",
        json.dumps(good | {"version": 2}): "version 2, expected 1",
        json.dumps(good | {"architecture": 3}): "expected an architecture and changes",
        json.dumps(good | {"changes": {"nowhere": {}}}): "no module 'nowhere'",
        json.dumps(good): "has no tensor",
        json.dumps(good | {"architecture": {"name": "conv2", "arguments": {"odd": 1}}}): "do not fit its model",
        None: "has no 'compact'",
    }.items():
        tensors = {"features.0.bias": torch.zeros(64)}
        path.write_bytes(safetensors.torch.save(tensors, None if text is None else {"compact": text}))
        with pytest.raises(TicketError, match=problem):
            supermask.load_compact(path)
