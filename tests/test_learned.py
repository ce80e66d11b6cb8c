"""What holds for every learned mask: edge-popup, the example, and rules that the tests write."""

from __future__ import annotations

import copy
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from networks import Tied as SmallTied
from processes import run_python
from products import combine, thin
from rules import RULES, Bernoulli, Biprop, Clamped, Gates, Patterns, Redrawing, Signed, Straight, Tasks, learn
from torch import nn

import supermask
from supermask.kernels import build as native
from supermask.live import EdgePopup, noise, program_of
from supermask.masks.random_numbers import key_of, uniform_floats


class Tied(nn.Module):
    """An embedding tied with the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(12, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.relu(self.body(self.embedding(x))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2, groups=2),
        nn.Flatten(),
        nn.Linear(72, 4),
    )


# All with inputs in multiples of 4, with an input for each.
NETWORKS = {
    "perceptron": (perceptron, lambda: torch.randn(5, 12)),
    "convolutions": (convolutions, lambda: torch.randn(5, 4, 6, 6)),
    "tied": (Tied, lambda: torch.randint(0, 12, (5, 4))),
    "recurrent": (Recurrent, lambda: torch.randn(5, 3, 8)),
    "attention": (Attention, lambda: torch.randn(5, 3, 8)),
}
each_rule = pytest.mark.parametrize("rule", RULES)
# Checks of what all rules have from the same code: one half of the rules each, and all of them in the slow run.
one_half = pytest.mark.parametrize("rule", thin(RULES, 2))
other_half = pytest.mark.parametrize("rule", thin(RULES, 2, 1))
# What compiles takes seconds.
some_rules = pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=() if rule == "edge-popup" else pytest.mark.slow) for rule in RULES],
)
# A mask that is chosen, and one that draws noise over weights that are trained: on each of the networks.
rules_and_networks = combine(("edge-popup", "gates"), rule=RULES, network=NETWORKS)


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections")
        yield


def make(rule: str, network: str = "perceptron"):
    """A model with the rule, its program, and an input."""
    model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    return model, learn(model, rule), x


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(model, x, steps: int = 3, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(trainable(model), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return optimizer


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@rules_and_networks
def test_training_moves_what_is_learned_and_baking_gives_what_an_evaluation_sees(rule, network):
    plain = NETWORKS[network][0]()
    names, flags = list(plain.state_dict()), [p.requires_grad for p in plain.parameters()]
    model, program, x = make(rule, network)
    before, frozen = bits(model), program.rule.frozen
    train(model, x)
    supermask.check(model)
    after = model.state_dict()
    learned = {f"{name}_{key}" for name, tensors in supermask.learned_of(model).items() for key in tensors}
    assert learned < set(after)
    moved = {n for n in names if not torch.equal(before[n], after[n]) and "running" not in n and "batches" not in n}
    assert moved == (set() if frozen else {n for n, _ in plain.named_parameters(remove_duplicate=False)})
    for name, layer in supermask.learned_of(model).items():
        for key, tensor in layer.items():
            still = not tensor.is_floating_point() or (rule == "tasks" and key != "scores0")
            assert torch.equal(before[f"{name}_{key}"], tensor) == still, (name, key)
    model.eval()
    expected, masks, baked = model(x), supermask.masks_of(model), supermask.bake(model)
    assert list(baked.state_dict()) == names
    assert [p.requires_grad for p in baked.parameters()] == flags
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in baked.modules())
    assert program_of(baked) is None and program_of(model) is program
    torch.testing.assert_close(baked(x), expected)
    assert torch.equal(model(x), expected), "the original keeps working"
    for name, mask in masks.items():
        weight = baked.get_parameter(name).detach()
        assert not weight[~mask].view(torch.int32).any(), name
        assert weight[mask].any(), name
    assert 0 < masks.kept <= masks.size
    if program.rule.exact:
        assert masks.kept == pytest.approx(program.density * masks.size, abs=len(masks))


@one_half
def test_detaching_in_place(rule):
    model, _, x = make(rule)
    train(model, x)
    model.eval()
    expected, baked = model(x), supermask.bake(model)
    assert supermask.detach(model) is model
    assert program_of(model) is None
    torch.testing.assert_close(model(x), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), baked.state_dict().values(), strict=True))
    supermask.learn(model, 0.5)
    supermask.check(model)


@other_half
def test_a_deep_copy_learns_on_its_own(rule):
    model, _, x = make(rule)
    train(model, x, 1)
    other = copy.deepcopy(model)
    before = bits(model)
    assert torch.equal(model.train()(x), other.train()(x)), "noise too"
    before = bits(model)
    train(other, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if program_of(model).rule.counts_steps:
        assert other.state_dict()["supermask_step"] == before["supermask_step"] + 3
        other.load_state_dict(before)
        assert other.state_dict()["supermask_step"] == before["supermask_step"]
        train(other, x)
    supermask.check(other)
    supermask.check(model)
    for ours, theirs in zip(supermask.learned_of(model).values(), supermask.learned_of(other).values(), strict=True):
        assert not all(torch.equal(ours[key], theirs[key]) for key in ours)


@rules_and_networks
def test_saved_loaded_and_resumed_is_never_stopped(rule, network):
    model, _, x = make(rule, network)
    optimizer = train(model, x, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, x, 2, optimizer)
    torch.manual_seed(5)
    other, _, _ = make(rule, network)
    again = torch.optim.SGD(trainable(other), 0.1, momentum=0.9)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(other, x, 2, again)
    ours, theirs = bits(model), bits(other)
    assert list(ours) == list(theirs)
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert supermask.masks_of(model) == supermask.masks_of(other)
    assigned = make(rule, network)[0]
    assigned.load_state_dict(ours, assign=True)
    assert torch.equal(assigned.eval()(x), model(x))


@one_half
def test_pickled(rule, tmp_path):
    model, _, x = make(rule)
    train(model, x, 1)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(x), model(x))
    train(other, x)
    supermask.check(other)
    assert torch.equal(supermask.bake(other).eval()(x), other.eval()(x))


@pytest.mark.slow
def test_pickled_for_another_process(tmp_path, forkserver_with_torch):
    model, _, x = make("bernoulli")
    train(model, x, 1)
    torch.save((model, x), tmp_path / "model.pt")
    code = f"""
import torch
model, x = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
import supermask
torch.save(model(x), {str(tmp_path / "out.pt")!r})
model(x).sum().backward()
supermask.check(model)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "out.pt"), model(x))


def compiled(model, backend: str):
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend=backend)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("network", ["perceptron", pytest.param("convolutions", marks=pytest.mark.slow)])
@some_rules
def test_compiled_it_is_the_same(rule, network, backend):
    model, _, x = make(rule, network)
    twin = copy.deepcopy(model)
    graph = compiled(twin, backend)
    for _ in range(3):  # of a rule with noise every pass draws anew, compiled or not
        outputs, found = model(x), graph(x)
        torch.testing.assert_close(found, outputs)
        for net, out in ((model, outputs), (twin, found)):
            out.square().mean().backward()
            with torch.no_grad():
                for parameter in trainable(net):
                    parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad)
        torch.testing.assert_close(gradients(twin), gradients(model))
    torch.testing.assert_close(bits(twin), bits(model))
    torch.testing.assert_close(graph.eval()(x), model.eval()(x))
    assert supermask.masks_of(graph) == supermask.masks_of(model)
    supermask.check(graph)


@some_rules
def test_many_models_are_compiled_a_few_times_at_most(rule):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    x = torch.randn(5, 12)

    def forward(x):
        return model(x)

    run = torch.compile(forward, backend=backend, fullgraph=True)
    for seed in range(10):
        model = perceptron()
        learn(model, rule, seed=seed, score_seed=100 + seed)
        twin = copy.deepcopy(model)
        torch.testing.assert_close(run(x), twin(x))
        torch.testing.assert_close(run(x), twin(x))
    assert 1 <= len(graphs) <= 3


@other_half
def test_autocast_rounds_the_network_and_not_the_mask(rule):
    model, program, x = make(rule)
    seen, end = [], program.end
    program.end = lambda: (seen.append([m.weight.detach().clone() for m in (model[0], model[2], model[4])]), end())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        masks = supermask.masks_of(model)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients(model).values())
    program.end = end
    twin = make(rule)[0]
    twin.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("supermask")}, strict=False)
    exact, stop = program_of(twin), program_of(twin).end
    exact.end = lambda: (seen.append([m.weight.detach().clone() for m in (twin[0], twin[2], twin[4])]), stop())
    twin(x)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(*seen, strict=True))
    model.eval()
    assert masks == supermask.masks_of(model)


@one_half
def test_channels_last(rule):
    model, _, x = make(rule, "convolutions")
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.contiguous(memory_format=torch.channels_last)), model(x))
    torch.manual_seed(1)
    late = convolutions().to(memory_format=torch.channels_last)
    learn(late, rule)
    torch.manual_seed(1)
    assert supermask.masks_of(late) == supermask.masks_of(make(rule, "convolutions")[0])
    train(late, x.contiguous(memory_format=torch.channels_last))
    supermask.check(late)


@other_half
def test_another_precision(rule):
    for dtype in (torch.float64, torch.bfloat16):
        model, x = perceptron().to(dtype), torch.randn(5, 12)
        learn(model, rule)
        assert model(x.to(dtype)).dtype == dtype
        train(model, x.to(dtype))
        supermask.check(model)
        assert torch.equal(supermask.bake(model).eval()(x.to(dtype)), model.eval()(x.to(dtype)))


@each_rule
def test_the_global_random_streams_are_left_alone(rule):
    """Choosing, a pass forward and back, copying, saving, baking: whoever draws for a mask draws from its own source."""
    model, program, x = make(rule, "convolutions")

    def states():
        return torch.get_rng_state(), random.getstate(), np.random.get_state()

    def assert_unmoved(before, what):
        now = states()
        assert torch.equal(before[0], now[0]), f"{what} draws from torch's global stream"
        assert before[1] == now[1], f"{what} draws from Python's global stream"
        assert all(np.array_equal(a, b) for a, b in zip(before[2], now[2], strict=True)), f"{what} draws from NumPy's"

    def learn_another():
        net = copy.deepcopy(bare)
        learn(net, rule)

    bare = convolutions()
    works = {
        "learn": learn_another,
        "choose": lambda: program.rule.choose(program.layers),
        "a pass": lambda: model.train()(x).sum().backward(),
        "an evaluation": lambda: model.eval()(x),
        "masks_of": lambda: supermask.masks_of(model),
        "check": lambda: supermask.check(model),
        "bake": lambda: supermask.bake(model),
    }
    for what, work in works.items():
        before = states()
        work()
        assert_unmoved(before, what)


@each_rule
def test_one_program_at_a_time(rule):
    model, _, _ = make(rule)
    masks = supermask.masks_of(model)
    for call in (lambda: supermask.hold(model, masks), lambda: learn(model, rule)):
        with pytest.raises(ValueError, match="carries masks already"):
            call()
    with pytest.raises(ValueError, match="the model's masks are being learned"):
        supermask.prune(model, 0.5)
    with pytest.raises(ValueError, match="the model's masks are being learned"):
        supermask.prune(model[0], 0.5)
    baked = supermask.bake(model)
    supermask.hold(baked, masks)
    supermask.check(baked)
    assert len(supermask.prune(supermask.detach(baked), 0.5)) == 3


@one_half
def test_a_functional_call_is_differentiated_by_what_it_is_given(rule):
    model, _, x = make(rule)
    given = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    expected = copy.deepcopy(model)
    expected(x).square().sum().backward()
    torch.func.functional_call(model, given, (x,)).square().sum().backward()
    assert {n: g.grad for n, g in given.items() if g.grad is not None}.keys() == gradients(expected).keys()
    assert all(p.grad is None for p in model.parameters())
    expected(x).square().sum().backward()
    supermask.check(model)


@each_rule
def test_a_state_dict_is_that_of_the_plain_model_and_what_is_learned(rule):
    from supermask.weights.fitting import state_of

    model, _, _ = make(rule, "tied")
    assert list(state_of(model)) == ["embedding.weight", "body.weight", "body.bias"]
    ticket = supermask.Ticket(
        supermask.masks_of(model), {"final": supermask.make_state(state_of(supermask.bake(model)), {})}
    )
    assert supermask.unpack(supermask.pack(ticket)).masks == supermask.masks_of(model)


# --- noise


def test_noise_is_drawn_anew_in_training_and_counted():
    model, program, x = make("bernoulli")
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    assert int(program.layers.step) == 2
    model.eval()
    assert torch.equal(model(x), model(x))
    assert torch.equal(supermask.bake(model)(x), model(x))
    assert int(program.layers.step) == 2
    state = model.state_dict()
    assert int(state["supermask_step"]) == 2
    with pytest.raises(RuntimeError, match="supermask_step"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if name != "supermask_step"})
    whole = nn.Sequential(model)
    whole.load_state_dict({**whole.state_dict(), "0.supermask_step": torch.tensor(7)})
    assert int(program.layers.step) == 7
    assert "supermask_step" not in supermask.bake(model).state_dict()
    twin = make("bernoulli")[0].eval()
    twin.load_state_dict(state)
    assert not torch.equal(twin(x), model(x)), "the sample of another step"


def test_passes_in_inference_mode_do_not_spoil_the_count():
    model, program, x = make("patterns")
    with torch.inference_mode():
        model(x)
    assert not program.layers.step.is_inference() and int(program.layers.step) == 1
    train(model, x)


def test_layers_whose_module_evaluates_do_not_sample():
    model, program, x = make("gates")
    model[0].eval()
    before = [gate.clone() for gate in program.rule.gates(program.layers)]
    model(x)
    after = program.rule.gates(program.layers)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_noise_without_a_count_is_refused():
    class Forgetful(supermask.LearnedMask):
        exact = False

        def choose(self, layers):
            return [layer.uniform() < 0.5 for layer in layers]

    model = perceptron()
    with pytest.raises(ValueError, match="set counts_steps = True"):
        supermask.learn(model, program=Forgetful())
    assert program_of(model) is None


def test_numbers_are_those_of_philox_and_say_so_on_every_machine():
    import hashlib

    program = make("bernoulli")[1]
    program.layers.passes += 3
    layer = program.layers[1]
    key = int.from_bytes(hashlib.sha256(b"0\0noise/2.weight").digest()[:16], "little")
    for stream in (0, 2):
        words = np.random.Philox(key=key, counter=[0, stream, 3, 0]).random_raw(32)
        halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], 1).reshape(-1)
        expected = ((halves >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23
        found = layer.uniform(stream=stream).numpy()
        assert found.shape == (8, 8) and np.array_equal(found.reshape(-1).astype(np.float64), expected)
        words = np.random.Philox(key=key, counter=[0, stream, 3, 0]).random_raw(7)
        normal = torch.special.ndtri(torch.from_numpy(((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52))
        torch.testing.assert_close(layer.normal((7,), stream=stream).double(), normal, rtol=1e-6, atol=1e-6)
    many = layer.uniform((1000, 1000))
    assert 0 < float(many.min()) < 1e-4 and 1 - 1e-4 < float(many.max()) < 1
    assert float(many.mean()) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 100_003])
def test_numbers_of_the_kernel_are_the_same(threads, count):
    if native.build("noise") is None:
        pytest.skip("this machine has no C++ compiler")
    key = key_of(3, "noise/2.weight")
    torch.set_num_threads(threads)
    for step, stream in [(0, 0), (17, 0), (17, 2)]:
        found = native.draw_uniform_floats(count, (int(key[0]), int(key[1])), step, stream).numpy()
        assert found.tobytes() == uniform_floats(count, key, step, stream).tobytes()


@pytest.mark.parametrize("compiler", [True, False])
def test_many_numbers_at_once_are_the_same_with_a_compiler_or_without(compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr(native, "build", lambda name: None)
    layer, count = make("bernoulli")[1].layers[1], noise.MANY + 3
    expected = uniform_floats(count, key_of(0, "noise/2.weight"), 0, 0)
    assert layer.uniform((1, count)).numpy().tobytes() == expected.tobytes()


# --- what a rule may be


def test_gradients_go_straight_through_by_default():
    model, program, x = make("straight through")
    twin = supermask.bake(model).requires_grad_(True)
    model(x).square().sum().backward()
    twin(x).square().sum().backward()
    for name in supermask.masks_of(model):
        expected = twin.get_parameter(name).grad * program.parameter(name)
        torch.testing.assert_close(program.score(name).grad, expected)


def test_biprop_is_what_its_paper_says():
    model, program, x = make("biprop")
    baked, masks = supermask.bake(model).requires_grad_(True), supermask.masks_of(model)
    model(x).square().sum().backward()
    baked(x).square().sum().backward()
    for name, mask in masks.items():
        weight, score = program.parameter(name).detach(), program.score(name)
        expected = weight.sign() * mask * weight[mask].abs().mean()
        torch.testing.assert_close(baked.get_parameter(name).detach(), expected)
        gradient = baked.get_parameter(name).grad * weight * score.detach().sign()
        torch.testing.assert_close(score.grad, gradient)


def test_weights_that_train_under_edge_popup_get_the_gradient_of_what_is_kept():
    class Trained(EdgePopup):
        frozen = False

    model, x = perceptron(), torch.randn(5, 12)
    supermask.learn(model, 0.5, program=Trained(), weights="keep")
    twin, masks = supermask.bake(model), supermask.masks_of(model)
    for net in (model, twin):
        net(x).square().sum().backward()
    for name, mask in masks.items():
        expected = twin.get_parameter(name).grad * mask
        torch.testing.assert_close(model.get_parameter(name).grad, expected)
    train(model, x)
    supermask.check(model)


def test_clamped_parameters_are_in_range_and_two_passes_go_before_one_backward():
    class Squared(Clamped):
        def effective(self, layers):
            return [
                layer.weight * supermask.straight_through(mask, layer["p"] ** 2)  # saves p for the backward pass
                for layer, mask in zip(layers, self.choose(layers), strict=True)
            ]

    model, x = perceptron(), torch.randn(5, 12)
    supermask.learn(model, program=Squared())
    raw = supermask.learned_of(model)["0.weight"]["p"]
    assert float(raw.detach().min()) >= 0 and float(raw.detach().max()) <= 1
    with torch.no_grad():
        raw.add_(0.4)
    first = model(x)
    assert float(raw.detach().max()) == 1.0
    (first + model(2 * x)).sum().backward()
    assert "0.weight_alive" in dict(model.named_buffers())
    with torch.no_grad():
        supermask.learned_of(model)["0.weight"]["alive"].zero_()
    with pytest.raises(ValueError, match="0.weight keeps 0 of 96 weights"):
        supermask.check(model)


def test_redrawn_weights_are_guarded_as_the_first_were():
    model, program, x = make("redrawing")
    before, masks, print_before = bits(model), supermask.masks_of(model), program.fingerprint
    train(model, x)
    program.rule.redraw(model, step=1)
    supermask.check(model)
    assert program.fingerprint != print_before
    changed = 0
    for name, mask in supermask.masks_of(model).items():
        same = model.get_parameter(name) == before[name]
        assert bool(same[mask].all())
        changed += int((~same).sum())
    assert changed > 0
    assert not set(program.draws) & set(masks), "a ticket keeps what no draw gives"
    with torch.no_grad():
        model[2].weight[0, 0] += 1
    with pytest.raises(ValueError, match="frozen weights have changed"):
        supermask.check(model)
    with pytest.raises(ValueError, match="frozen weights have changed"):
        program.rule.redraw(model, step=2)
    with pytest.raises(ValueError, match=r"there is no parameter '0\.wieght'; did you mean '0\.weight'\?.*has shape"):
        supermask.replace_weights(model, {"0.wieght": torch.ones(1), "2.weight": torch.ones(3, 3)})
    for other in (perceptron(), supermask.bake(model)):
        with pytest.raises(ValueError, match="the model carries no masks"):
            supermask.replace_weights(other, {})
    held = perceptron()
    supermask.hold(held, supermask.prune(held, 0.5))
    with pytest.raises(ValueError, match="masks that are held, not learned"):
        supermask.learned_of(held)


def test_tasks_have_masks_of_their_own_and_a_mixture_is_differentiated():
    model, program, x = make("tasks")
    masks = []
    for task in range(3):
        program.rule.task = task
        masks.append(supermask.masks_of(model))
        supermask.check(model)
    assert masks[0] != masks[1] != masks[2]
    program.rule.mixture = torch.full((3,), 1 / 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).square().sum(), program.rule.mixture)
    assert gradient.shape == (3,) and bool(gradient.any())


def test_a_density_is_asked_of_rules_that_promise_one():
    for rule in (EdgePopup, Biprop, Straight, Patterns, Redrawing, Tasks):
        with pytest.raises(ValueError, match="learn needs a density"):
            supermask.learn(perceptron(), program=rule())
    for rule in (Bernoulli, Clamped, Gates, Signed):
        supermask.learn(perceptron(), program=rule())
    with pytest.raises(ValueError, match=r"learn\(model, density, ...\)"):
        supermask.learn(perceptron(), program=type("Loose", (Biprop,), {"exact": False})())


def test_scores_are_ranked_by_value_where_that_is_asked():
    for asked in ({"density": 0.3}, {"density": 0.3, "allocation": "global"}, {"granularity": "2:4"}):
        model = perceptron()
        supermask.learn(model, program=Straight(), **asked)
        layers = program_of(model).layers
        scores = [layer["scores"].detach() for layer in layers]
        shifted = layers.keep_largest([score + 100 for score in scores])  # above 0 both orders are one
        assert all(torch.equal(a, b) for a, b in zip(layers.keep_largest(scores, signed=True), shifted, strict=True))


class Wrong(supermask.LearnedMask):
    """A rule that gives one thing wrong."""

    def __init__(self, what: str) -> None:
        self.what = what

    def start(self, layers, seed):
        started = super().start(layers, seed)
        return started[1:] if self.what == "started" else started

    def choose(self, layers):
        masks = layers.keep_largest([layer["score" if self.what == "name" else "scores"] for layer in layers])
        if self.what == "count":
            masks[1][0] = True
        changes = {"dtype": lambda m: m.float(), "shape": lambda m: m.reshape(-1), "pattern": lambda m: ~m | m}
        return [changes.get(self.what, lambda m: m)(mask) for mask in masks][self.what == "number" :]

    def effective(self, layers):
        made = super().effective(layers) if self.what not in ("dtype", "shape", "number") else []
        made = made or [layer.weight for layer in layers]
        return [weight + 1 if self.what == "alive" else weight for weight in made]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("started", "Wrong.start begins 2 layers, expected 3"),
        ("name", "unknown learned tensor 'score'; did you mean 'scores'"),
        ("dtype", r"the mask of 0.weight is float32 \[8, 12\], expected bool \[8, 12\]; the mask of 2.weight"),
        ("shape", r"the mask of 0.weight is bool \[96\], expected bool \[8, 12\]"),
        ("number", "2 masks and 3 effective weights for 3 layers"),
        ("alive", "0.weight has 48 dropped weights that are not 0 in evaluation; 2.weight has 32"),
        ("pattern", "the mask of 0.weight is not 2:4"),
    ],
)
def test_a_rule_that_is_wrong_is_told_so_and_leaves_the_model_as_it_was(what, message):
    model = perceptron()
    asked = {"granularity": "2:4"} if what == "pattern" else {"density": 0.5}
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        supermask.learn(model, program=Wrong(what), weights="keep", **asked)
    assert program_of(model) is None
    assert all(p.requires_grad for p in model.parameters())
    after = bits(model)
    assert list(before) == list(after) and all(torch.equal(before[n], after[n]) for n in before)
    assert len(supermask.prune(model, 0.5)) == 3


def test_a_promise_that_is_not_kept_is_found_by_check():
    model = perceptron()
    supermask.learn(model, 0.5, program=Wrong("count"))
    with pytest.raises(ValueError, match=r"2.weight keeps \d+ of 64 weights, density 0.5 asks for 32"):
        supermask.check(model)
    model, program, _ = make("gates")
    with torch.no_grad():
        program.score("2.weight")[0] = torch.nan
    with pytest.raises(ValueError, match="the logits of 2.weight are NaN or infinite"):
        supermask.check(model)


def test_what_is_no_rule_is_refused():
    with pytest.raises(ValueError, match=r"expected program=Biprop\(\), got the class"):
        supermask.learn(perceptron(), 0.5, program=Biprop)
    with pytest.raises(ValueError, match="unknown learned mask 'edge-pop'; did you mean 'edge-popup'"):
        supermask.learn(perceptron(), 0.5, program="edge-pop")
    with pytest.raises(ValueError, match="expected a supermask.LearnedMask or the name of one, got a int"):
        supermask.learn(perceptron(), 0.5, program=3)
    with pytest.raises(TypeError, match="choose"):
        supermask.learn(perceptron(), 0.5, program=supermask.LearnedMask())
    with pytest.raises(ValueError, match=r"two tensors of one shape, got \[2\] and \[3\]"):
        supermask.straight_through(torch.ones(2), torch.ones(3))


def test_names():
    """`program=None`, the name and the object are one; a rule can be shared between models."""
    models, rule = [perceptron() for _ in range(4)], EdgePopup()
    for model, program in zip(models, (None, "edge-popup", rule, rule), strict=True):
        supermask.learn(model, 0.5, program=program)
    states = [bits(model) for model in models]
    assert all(torch.equal(states[0][n], state[n]) for state in states for n in states[0])
    x = torch.randn(5, 12)
    assert all(torch.equal(models[0](x), model(x)) for model in models)


# --- names of the user's own


class Scored(nn.Linear):
    """A layer whose own parameter has the name that scores have, and a method that of another."""

    def __init__(self) -> None:
        super().__init__(20, 5)
        self.weight_scores = nn.Parameter(torch.randn(5, 20))

    def weight_logits(self):
        return None

    def forward(self, x):
        return super().forward(x) * self.weight_scores.mean()


@other_half
def test_a_parameter_of_the_users_that_is_called_as_ours_is_theirs(rule):
    from supermask.weights.fitting import state_of

    model, x = nn.Sequential(Scored(), nn.Linear(5, 4, bias=False)), torch.randn(3, 20)
    options = {"exclude": "1"} if "2:4" in rule or rule == "patterns" else {}
    names, theirs = list(model.state_dict()), model[0].weight_scores
    value = theirs.detach().clone()
    assert "0.weight_scores" in supermask.prune(model, 0.3, include="*")
    assert list(supermask.prune(model, 0.3)) == ["0.weight", "1.weight"]
    learn(model, rule, **options)
    train(model, x)
    supermask.check(model)
    assert model[0].weight_scores is theirs
    assert program_of(model).rule.frozen == torch.equal(theirs, value)
    assert list(state_of(model)) == names
    baked = supermask.bake(model)
    assert list(baked.state_dict()) == names
    assert torch.equal(baked[0].weight_scores, theirs)
    other = nn.Sequential(Scored(), nn.Linear(5, 4, bias=False))
    learn(other, rule, **options)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_masks_on_such_a_model_are_held_and_baked():
    model = Scored()
    with pytest.raises(ValueError, match="the model carries no masks"):
        supermask.bake(model)
    masks = supermask.prune(model, 0.3)
    assert list(masks) == ["weight"]
    supermask.hold(model, masks)
    assert torch.equal(supermask.bake(model).weight_scores, model.weight_scores)


def test_tied_weights_are_learned_once():
    model = SmallTied()
    supermask.learn(model, 0.5)
    assert list(supermask.learned_of(model)) == ["embedding.weight", "body.weight"]
    assert [n for n, _ in model.named_parameters() if n.endswith("_scores")] == [
        "embedding.weight_scores",
        "body.weight_scores",
    ]
