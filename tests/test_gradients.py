"""Batches of any form, one in memory at a time, and a model that nobody sees was looked at."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import NETWORKS, perceptron, start_of
from products import combine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import supermask
from supermask.choosing.gradients import Batch, floating_outputs
from supermask.choosing.scores import SCORES

pytestmark = pytest.mark.quick

OF_GRADIENTS = ["snip", "taylor", "movement", "grasp"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def data(samples: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 12, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return perceptron().double()


def kept(batches, score: str = "snip", **options) -> supermask.Masks:
    return supermask.prune(net(), 0.3, score, batches=batches, **options)


def scores(score: str, batches, loss=None) -> dict[str, Tensor]:
    """Every single score, caught on its way."""
    caught = {}

    def catch(model: nn.Module, targets, evidence) -> dict[str, Tensor]:
        caught.update(SCORES[score](model, targets, evidence))
        return caught

    supermask.prune(net(), 0.5, catch, batches=batches, loss=loss)
    return caught


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.allclose(first[key], second[key], rtol=1e-6, atol=0) for key in first)


# --- forms of batches


def test_lists_generators_and_loaders():
    x, y = data()
    pairs = [(x[:8], y[:8]), (x[8:], y[8:])]
    expected = kept(pairs)
    assert kept(iter(pairs)) == kept(part for part in pairs) == expected
    assert kept([list(pair) for pair in pairs]) == expected
    assert kept(DataLoader(TensorDataset(x, y), batch_size=8)) == expected
    for score in OF_GRADIENTS:
        assert kept((part for part in pairs), score, rounds=3) == kept(pairs, score, rounds=3), "gone through again"


class Sentence(nn.Module):
    """A model in the manner of transformers: keyword arguments in, a loss of its own out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> SimpleNamespace:
        hidden = self.table(ids) if mask is None else self.table(ids) * mask[..., None]
        logits = self.head(hidden.mean(1))
        return SimpleNamespace(
            logits=logits, loss=None if labels is None else nn.functional.cross_entropy(logits, labels)
        )


def test_mappings_of_keyword_arguments():
    model, ids, y = Sentence(), torch.randint(0, 9, (6, 5)), torch.randint(0, 4, (6,))
    mask = torch.ones(6, 5)
    own = supermask.prune(model, 0.3, "snip", batches=[{"ids": ids, "mask": mask, "labels": y}])
    given = supermask.prune(
        model, 0.3, "snip", batches=[{"ids": ids, "labels": y}],
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs.logits, batch["labels"]),
    )  # fmt: skip
    pairs = supermask.prune(
        model, 0.3, "snip", batches=[(ids, y)], loss=lambda o, y: nn.functional.cross_entropy(o.logits, y)
    )
    triples = supermask.prune(
        model, 0.3, "snip", batches=[(ids, mask, y)], loss=lambda o, y: nn.functional.cross_entropy(o.logits, y)
    )
    assert own == given == pairs == triples
    with pytest.raises(
        ValueError, match="the loss of a batch is NoneType, expected outputs with a loss of their own, or loss="
    ):
        supermask.prune(model, 0.3, "snip", batches=[{"ids": ids}])
    with pytest.raises(ValueError, match="grasp with outputs of type SimpleNamespace needs loss="):
        supermask.prune(model, 0.3, "grasp", batches=[{"ids": ids, "labels": y}])


@pytest.mark.parametrize("score", ["snip", "movement", "grasp"])
def test_batches_of_unequal_size_equal_one_big_batch(score):
    x, y = data()
    whole, parts = scores(score, [(x, y)]), scores(score, [(x[:7], y[:7]), (x[7:8], y[7:8]), (x[8:], y[8:])])
    assert same(whole, parts)
    assert not same(whole, scores(score, [(x[:7], y[:7]), (x[7:8], y[7:8])]))


def test_samples_are_counted_wherever_the_tensors_are():
    x, y = data()
    nested = [({"x": x[:9]}, y[:9]), ({"x": x[9:]}, y[9:])]
    plain = scores("snip", [(x, y)])

    class Taking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, parts: dict[str, Tensor]) -> Tensor:
            return self.inner(parts["x"])

    found = supermask.prune(Taking(), 0.3, "snip", batches=nested)
    assert {name.removeprefix("inner."): mask for name, mask in found.items()} == kept([(x, y)])
    assert plain


@pytest.mark.parametrize("score", ["snip", "grasp", "taylor"])
def test_named_inputs_beside_targets_that_are_no_argument(score):
    x, y = data()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, *, x: Tensor) -> Tensor:
            return self.inner(x)

    found = supermask.prune(Named(), 0.3, score, batches=[Batch({"x": x[:9]}, y[:9]), Batch({"x": x[9:]}, y[9:])])
    plain = supermask.prune(net(), 0.3, score, batches=[(x[:9], y[:9]), (x[9:], y[9:])])
    assert {name.removeprefix("inner."): mask.tolist() for name, mask in found.items()} == {
        name: mask.tolist() for name, mask in plain.items()
    }


def test_a_loss_of_ones_own():
    x, y = data()
    batches = [(x, nn.functional.one_hot(y, 3).double())]
    assert same(scores("snip", batches, loss=nn.CrossEntropyLoss()), scores("snip", [(x, y)]))
    assert not same(scores("snip", batches, loss=nn.MSELoss()), scores("snip", [(x, y)]))
    assert same(
        scores("snip", batches, loss=lambda o, y: nn.functional.cross_entropy(o, y).reshape(1, 1)),
        scores("snip", [(x, y)]),
    )


X, Y = data()
BAD = [
    (None, None, r"the score 'snip' looks at gradients: expected batches=\.\.\., an iterable of \(inputs, targets\)"),
    (3, None, r"batches is int, expected an iterable"),
    ([], None, r"batches is empty: expected at least one batch of \(inputs, targets\)"),
    (iter([]), None, "batches is empty"),
    ([X], None, r"a batch is a tensor of shape \[12, 12\], expected \(inputs, targets\) or a mapping"),
    ([(X,)], None, r"a batch is a tuple of 1, expected \(inputs, targets\)"),
    (["text"], None, r"a batch is str, expected \(inputs, targets\)"),
    (
        [(X, Y)],
        nn.CrossEntropyLoss(reduction="none"),
        r"the loss of a batch is a tensor of shape \[12\], expected loss\(outputs, targets\) to",
    ),
    ([(X, Y)], lambda outputs, y: 0.5, "the loss of a batch is float, expected"),
    ([(X, Y)], lambda outputs, y: outputs.detach().mean(), "the loss of a batch depends on no weight"),
    (
        [(X * torch.nan, Y)],
        None,
        "the scores cannot be ranked: 0.weight has 108 NaN among its 108 scores; 2.weight has 63 NaN",
    ),
]


@pytest.mark.parametrize(("batches", "loss", "message"), BAD)
def test_batches_that_are_none(batches, loss, message):
    with pytest.raises(ValueError, match=message):
        kept(batches, loss=loss)


# --- one batch in memory


@pytest.mark.parametrize("score", OF_GRADIENTS)
def test_one_graph_and_one_batch_are_alive_at_a_time(score):
    alive: list[weakref.ref] = []
    most = 0

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(outputs, y).reshape(1)
        alive.extend((weakref.ref(outputs), weakref.ref(value)))
        return value

    def pack(tensor: Tensor) -> Tensor:
        saved = tensor.detach()
        alive.append(weakref.ref(saved))
        return saved

    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal most
            for seed in range(4):
                assert not [ref for ref in alive if ref() is not None], f"batch {seed} comes while a graph is alive"
                x, y = data(5, seed)
                alive.extend((weakref.ref(x), weakref.ref(y)))
                most += 1
                yield x, y
                del x, y

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            kept(Batches(), score, loss=loss)
    finally:
        gc.enable()
    assert len(alive) > 4 * 10, "activations too"
    assert most == 4 * (2 if score == "grasp" else 1)


# --- nobody sees that the model was looked at


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "ids": [id(tensor) for tensor in [*model.parameters(), *model.buffers()]],
        "modes": [module.training for module in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "random": [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "inside": [sorted(vars(module)) for module in model.modules()],
    }  # fmt: skip


class Drifting(nn.Module):
    """Batch norm, dropout, and a buffer that is replaced in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.drop, self.two = (
            nn.Conv2d(3, 6, 2),
            nn.BatchNorm2d(6),
            nn.Dropout(),
            nn.Conv2d(6, 4, 2),
        )
        self.last = nn.BatchNorm2d(4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("later", None)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        self.later = x.detach().mean()
        return self.last(self.two(self.drop(self.norm(self.one(x)).relu()))).mean((2, 3))


@combine(score=SCORES, way=itertools.product(["weight", "filter"], [False, True]))
def test_the_model_is_left_as_it_was(score, way):
    granularity, failing = way
    model = Drifting()
    model.norm.eval()
    model.two.weight.requires_grad_(False)
    model.one.weight.grad = torch.ones_like(model.one.weight)
    x, y = torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 2, 3])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield x, y
        torch.rand(3)
        if failing:
            raise RuntimeError("a broken batch")
        yield x, y

    shape = "filter" if granularity == "filter" and score != "random" else "weight"
    before = snapshot(model)
    previous = supermask.prune(model, 0.9)
    ask = {"batches": batches(), "example_input": x[:, :, :1, :1] if failing else x, "previous": previous, "rounds": 2}
    ask["start"] = start_of(model)
    fails = failing and (score in [*OF_GRADIENTS, "synflow", "bn-scale"] or shape == "filter")
    if fails:
        with pytest.raises((RuntimeError, ValueError), match="a broken batch|does not take the example input"):
            supermask.prune(model, 0.5, score, granularity=shape, **ask)
    else:
        supermask.prune(model, 0.5, score, granularity=shape, **ask)
    check_same(before, snapshot(model))


def test_what_a_score_of_ones_own_leaves_behind_is_put_right():
    model = Drifting()

    def rude(model: nn.Module, targets, evidence) -> dict[str, Tensor]:
        model.eval().requires_grad_(False)
        model.norm.running_mean += torch.rand(6)
        model.seen = torch.ones(3)
        return {name: torch.rand(target.parameter.shape) for name, target in targets.items()}

    before = snapshot(model)
    masks = supermask.prune(model, 0.5, rude, seed=4)
    check_same(before, snapshot(model))
    assert supermask.prune(model, 0.5, rude, seed=4) == masks, "random numbers are those of the seed"


def check_same(before: dict[str, object], after: dict[str, object]) -> None:
    assert before.keys() == after.keys()
    for part in ("ids", "modes", "flags", "hooks", "inside"):
        assert before[part] == after[part], part
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name
    for part in ("grads", "random"):
        for old, new in zip(before[part], after[part], strict=True):
            assert (old is None and new is None) or torch.equal(old, new), part


def test_dropout_depends_on_the_seed_only():
    x, y = data(6)
    model = nn.Sequential(nn.Linear(12, 9), nn.Dropout(0.5), nn.Linear(9, 3)).double()
    first = supermask.prune(model, 0.3, "snip", batches=[(x, y)], seed=1)
    torch.rand(7)
    assert supermask.prune(model, 0.3, "snip", batches=[(x, y)], seed=1) == first
    assert supermask.prune(model, 0.3, "snip", batches=[(x, y)], seed=2) != first


def test_gradients_are_there_in_no_grad_and_of_every_kind_of_layer():
    with torch.no_grad():
        assert kept([data()]) == kept([data()], rounds=1)
    for name in ("attention", "recurrent", "transposed", "residual"):
        make, example = NETWORKS[name]
        batches = [(example(), torch.tensor([0, 1, 2, 0, 1]))]
        for score in OF_GRADIENTS:
            masks = supermask.prune(make(), 0.5, score, batches=batches)
            assert masks.density == pytest.approx(0.5, abs=0.01)


def test_all_floating_outputs_count():
    x, y, whole = torch.ones(2), torch.zeros(3), torch.tensor([1])
    for outputs, expected in (
        (x, [x]),
        ((whole, x), [x]),
        ((x, y), [x, y]),
        ({"ids": whole, "logits": x, "boxes": y}, [x, y]),
        (SimpleNamespace(logits=x), [x]),
        ([(), (x,), {"deep": [y]}], [x, y]),
    ):
        assert [id(tensor) for tensor in floating_outputs(outputs)] == [id(tensor) for tensor in expected]
    with pytest.raises(ValueError, match="the model's output is int, expected a tensor of floating-point numbers"):
        floating_outputs(3)
