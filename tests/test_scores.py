"""Scores against networks written out in NumPy, finite differences and sums over single paths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import perceptron
from torch import Tensor, nn

import supermask
from supermask import Evidence, Movement
from supermask.choosing.allocation import ALLOCATIONS
from supermask.choosing.criteria import CRITERIA
from supermask.choosing.gradients import undisturbed
from supermask.choosing.scores import SCORES, find_score, magnitude
from supermask.masks.random_numbers import uniform
from supermask.masks.targets import find_targets

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # small tensors


Weights = dict[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]


def score_of(name: str, model: nn.Module, batches=None, example=None, seed: int = 0) -> Weights:
    evidence = Evidence(seed, batches, None, example)
    with undisturbed(model, seed):
        scores = SCORES[name](model, find_targets(model), evidence)
    return {key: score.detach().numpy() for key, score in scores.items()}


def numpy_of(model: nn.Module) -> Weights:
    return {key: tensor.detach().numpy().copy() for key, tensor in model.state_dict().items()}


# --- a perceptron with its backward pass, and a convolution by differences


def make_perceptron() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False)).double()


def perceptron_gradients(w: Weights, batch: Batch, temperature: float = 1.0) -> Weights:
    """Of the mean cross-entropy, by hand."""
    x, y = batch
    hidden = np.tanh(x @ w["0.weight"].T + w["0.bias"])
    logits = hidden @ w["2.weight"].T / temperature
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y) * temperature
    back = (p @ w["2.weight"]) * (1 - hidden**2)
    return {"0.weight": back.T @ x, "2.weight": p.T @ hidden}


def make_convolution() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()


def convolution_loss(w: Weights, batch: Batch, temperature: float = 1.0) -> float:
    """The mean cross-entropy, every multiplication written out."""
    total = 0.0
    for image, label in zip(*batch, strict=True):
        features = []
        for o, i, j in itertools.product(range(3), range(2), range(2)):
            value = w["0.bias"][o]
            for c, a, b in itertools.product(range(2), range(2), range(2)):
                value += w["0.weight"][o, c, a, b] * image[c, 2 * i + a, 2 * j + b]
            features.append(np.tanh(value))
        logits = (w["3.weight"] @ np.array(features) + w["3.bias"]) / temperature
        total += np.log(np.exp(logits).sum()) - logits[label]
    return total / len(batch[1])


def convolution_gradients(w: Weights, batch: Batch, temperature: float = 1.0) -> Weights:
    """By central differences, weight by weight."""
    gradients = {}
    for name in ("0.weight", "3.weight"):
        gradients[name] = np.zeros_like(w[name])
        for place in np.ndindex(w[name].shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = {**w, name: w[name].copy()}
                moved[name][place] += step
                sides.append(convolution_loss(moved, batch, temperature))
            gradients[name][place] = (sides[0] - sides[1]) / 2e-6
    return gradients


def draw(shape: tuple[int, ...], classes: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return generator.normal(size=shape), generator.integers(0, classes, shape[0])


CASES = {
    "perceptron": (make_perceptron, perceptron_gradients, [draw((n, 5), 4, n) for n in (7, 3, 1)], 1e-9),
    "convolution": (make_convolution, convolution_gradients, [draw((n, 2, 4, 4), 3, n) for n in (2, 1)], 1e-6),
}


def mean_over_samples(batches: list[Batch], term) -> Weights:
    total = sum(len(y) for _, y in batches)
    terms = [(len(batch[1]) / total, term(batch)) for batch in batches]
    return {name: sum(share * part[name] for share, part in terms) for name in terms[0][1]}


def slow_grasp(gradients_of, w: Weights, batches: list[Batch]) -> Weights:
    """w (H g), H g by differences of gradients along g, of outputs divided by 200."""

    def whole(weights: Weights) -> Weights:
        return mean_over_samples(batches, lambda batch: gradients_of(weights, batch, 200.0))

    g = whole(w)
    # Gradients of cooled outputs are small: a long step is a short way.
    step = 1e-3 / max(np.abs(part).max() for part in g.values())
    ahead, behind = (
        whole({name: w[name] + s * g[name] if name in g else w[name] for name in w}) for s in (step, -step)
    )
    return {name: w[name] * (ahead[name] - behind[name]) / (2 * step) for name in g}


SLOW = {
    "snip": lambda g, w, b: {n: np.abs(m * w[n]) for n, m in mean_over_samples(b, lambda one: g(w, one)).items()},
    "taylor": lambda g, w, b: mean_over_samples(b, lambda one: {n: (m * w[n]) ** 2 for n, m in g(w, one).items()}),
    "movement": lambda g, w, b: mean_over_samples(b, lambda one: {n: -m * w[n] for n, m in g(w, one).items()}),
    "grasp": slow_grasp,
}  # fmt: skip
OF_WEIGHTS = {
    "magnitude": np.abs,
    "l1": np.abs,
    "l2": np.square,
}


def test_every_score_is_compared_with_a_slow_one():
    assert set(SCORES) == {*SLOW, *OF_WEIGHTS, *CRITERIA, "random", "synflow", "bn-scale"}  # CRITERIA: test_criteria.py


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SLOW)
def test_scores_of_gradients_equal_those_by_hand(name, case):
    make, gradients_of, batches, tolerance = CASES[case]
    model = make()
    w = numpy_of(model)
    expected = SLOW[name](gradients_of, w, batches)
    found = score_of(name, model, [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches])
    for key in expected:
        scale = np.abs(expected[key]).max()
        assert scale > 0
        assert np.allclose(found[key], expected[key], rtol=0, atol=scale * (1e-4 if name == "grasp" else tolerance)), (
            key
        )


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_scores_of_weights(name):
    model = perceptron()
    for key, weight in find_targets(model).items():
        assert np.array_equal(score_of(name, model)[key], OF_WEIGHTS[name](weight.parameter.detach().numpy()))


def test_random_scores_depend_on_seed_and_name_only():
    model = perceptron()
    first, again, other = (score_of("random", m, seed=s) for m, s in [(model, 3), (perceptron(), 3), (model, 4)])
    for key in first:
        assert np.array_equal(first[key], again[key])
        assert not np.array_equal(first[key], other[key])
        assert first[key].ravel().tolist() == uniform(first[key].size, 3, "random/" + key).astype(np.float32).tolist()
    assert not np.array_equal(first["0.weight"].ravel()[:21], first["4.weight"].ravel())


# --- the flow of paths


def chain(*widths: int) -> nn.Sequential:
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def test_synflow_is_the_mass_of_the_paths_through_a_weight():
    model = chain(3, 4, 2, 3)
    w = {key: np.abs(part.astype(np.float64)) for key, part in numpy_of(model).items()}
    expected = {key: np.zeros_like(part) for key, part in w.items()}
    for a, b, c, d in itertools.product(range(3), range(4), range(2), range(3)):
        mass = w["0.weight"][b, a] * w["2.weight"][c, b] * w["4.weight"][d, c]
        for key, place in [("0.weight", (b, a)), ("2.weight", (c, b)), ("4.weight", (d, c))]:
            expected[key][place] += mass
    found = score_of("synflow", model, example=torch.randn(5, 3))
    for key in expected:
        assert np.allclose(found[key], expected[key], rtol=1e-12)


def test_synflow_goes_through_a_norm_as_it_is_in_evaluation():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].running_mean, model[1].running_var):
            tensor.copy_(torch.rand(3) + 0.5)
        model[1].weight[0] *= -1
    w = {key: np.abs(part.astype(np.float64)) for key, part in numpy_of(model).items()}
    factor = w["1.weight"] / np.sqrt(w["1.running_var"] + 1e-5)
    through = w["3.weight"][0] * factor
    found = score_of("synflow", model.train(), example=torch.zeros(4, 2))
    assert np.allclose(found["0.weight"], w["0.weight"] * through[:, None], rtol=1e-12)
    assert np.allclose(found["3.weight"][0], w["3.weight"][0] * factor * w["0.weight"].sum(1), rtol=1e-12)


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 2, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 3, bias=False)
    )


@pytest.mark.parametrize("make", [lambda: chain(9, 17, 5, 8), convolutions])
def test_synflow_is_conserved_from_layer_to_layer(make):
    model = make()
    example = torch.ones(1, 9) if isinstance(model[0], nn.Linear) else torch.ones(1, 2, 5, 5)
    for _ in range(2):
        sums = [score.sum() for score in score_of("synflow", model, example=example).values()]
        assert max(sums) - min(sums) <= 1e-6 * max(sums)
        supermask.hold(model, supermask.prune(model, 0.4, "synflow", example_input=example, rounds=5))
        supermask.detach(model)


def test_synflow_of_sixty_layers_stays_finite():
    model = chain(*[8] * 61)
    example = torch.ones(1, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)
        flow = example
        for layer in model:
            flow = layer(flow) if isinstance(layer, nn.ReLU) else flow @ layer.weight.abs().T
    assert not torch.isfinite(flow).all(), "float32 overflows"
    masks = supermask.prune(model, 0.05, "synflow", example_input=example, rounds=10)
    assert min(masks.kept_per_tensor.values()) > 0
    sums = [score.sum() for score in score_of("synflow", model, example=example).values()]
    assert np.isfinite(sums).all() and max(sums) - min(sums) <= 1e-6 * max(sums)


def test_synflow_that_cannot_be():
    for example, message in [
        (None, "'synflow' needs example_input"),
        (torch.ones(1, 5), "does not take the example input: R"),
    ]:
        with pytest.raises(ValueError, match=message):
            supermask.prune(perceptron(), 0.5, "synflow", example_input=example)
    cut = chain(4, 3, 2)
    nn.init.zeros_(cut[2].weight)
    with pytest.raises(ValueError, match="the flow through the weights is 0: .*a layer that lost all of its weights"):
        supermask.prune(cut, 0.5, "synflow", example_input=torch.ones(1, 4))


@pytest.mark.slow
def test_synflow_empties_no_layer_of_vgg16_where_magnitude_does():
    from ticket_search.models.vgg import vgg16

    torch.manual_seed(0)
    model = vgg16(input_shape=[3, 32, 32], classes=10)
    synflow = supermask.prune(model, 1e-3, "synflow", example_input=torch.ones(1, 3, 32, 32))
    assert min(synflow.kept_per_tensor.values()) > 0
    assert min(supermask.prune(model, 1e-3).kept_per_tensor.values()) == 0


# --- norms, movement, precision


@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_scale_of_a_norm_is_shared_out_over_its_filter(make, groups):
    model = nn.Sequential(make(4, 6, 2, groups=groups), nn.BatchNorm2d(6), nn.ReLU())
    nn.init.normal_(model[1].weight)
    score = torch.from_numpy(score_of("bn-scale", model, example=torch.randn(1, 4, 5, 5))["0.weight"])
    filters = list(score)
    if make is nn.ConvTranspose2d:
        ins, outs = 4 // groups, 6 // groups
        filters = [score[o // outs * ins : (o // outs + 1) * ins, o % outs] for o in range(6)]
    assert torch.allclose(torch.stack([part.sum() for part in filters]), model[1].weight.detach().abs())
    assert all(bool((part == part.flatten()[0]).all()) for part in filters)


def with_norms() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(2, 3))


def test_what_has_no_norm_behind_it_stays_dense():
    model, x = with_norms(), torch.randn(1, 1, 5, 5)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 3.0, 2.0, 0.2]))
    masks = supermask.prune(model, 0.5, "bn-scale", granularity="filter", example_input=x)
    assert masks["0.weight"].flatten(1).all(1).tolist() == [False, True, True, False]
    assert masks["2.weight"].all() and masks["4.weight"].all()
    fewer = supermask.prune(model, 0.25, "bn-scale", granularity="filter", example_input=x, previous=masks)
    assert fewer["0.weight"].flatten(1).any(1).tolist() == [False, True, False, False]
    single = supermask.prune(model, 0.5, "bn-scale", example_input=x)
    assert single.size == 36 and single == supermask.prune(model, 0.5, "bn-scale", exclude=["2", "4"], example_input=x)
    less = supermask.prune(model, 0.25, "bn-scale", example_input=x, exclude="2", previous=single, rounds=2)
    assert less.within(single) and less.kept == 9
    both = supermask.prune(model, 0.9)
    later = supermask.prune(model, 0.2, "bn-scale", example_input=x, previous=both)
    assert torch.equal(later["4.weight"], both["4.weight"]) and later["0.weight"].sum() == 7


def test_a_network_without_norms():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4)
    with pytest.raises(
        ValueError, match="bn-scale: no batch norm stands behind 0.weight, 2.weight: take another score"
    ):
        supermask.prune(model, 0.5, "bn-scale", example_input=x)
    with pytest.raises(ValueError, match="'bn-scale' needs example_input"):
        supermask.prune(model, 0.5, "bn-scale")


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("granularity", ["weight", "filter", "channel", "block:1x2"])
def test_scores_of_infinity_leave_a_tensor_dense_and_out_of_the_density(granularity, allocation):
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(4, 4))

    def but_for_one(model, targets, evidence):
        found = magnitude(model, targets, evidence)
        return found | {"1.weight": torch.full_like(found["1.weight"], torch.inf)}

    masks = supermask.prune(model, 0.5, but_for_one, allocation, granularity)
    assert masks == supermask.prune(model, 0.5, "magnitude", allocation, granularity, exclude="1")
    with pytest.raises(ValueError, match="the scores leave all of 1.weight dense"):
        supermask.prune(model, 0.5, but_for_one, allocation, granularity, include="1.weight")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_movement_is_summed_over_a_training(dtype):
    torch.manual_seed(0)
    model = perceptron().to(dtype)
    movement, expected = Movement(model), {key: 0.0 for key in find_targets(model)}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    other = torch.optim.SGD(perceptron().parameters(), 0.1)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(5, 12, dtype=dtype)), torch.randint(0, 3, (5,))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        expected = {key: total - (model.get_parameter(key).grad.double() * model.get_parameter(key).detach().double())
                    for key, total in expected.items()}  # fmt: skip
        optimizer.step()
        other.step()
    movement.stop()
    optimizer.step()
    targets = find_targets(model)
    found = movement(model, targets, Evidence())
    assert movement.steps == 6
    for key in targets:
        assert torch.allclose(found[key].double(), expected[key], rtol=1e-5, atol=1e-9)
    masks = supermask.prune(model, 0.3, movement)
    kept = torch.cat([found[key][mask] for key, mask in masks.items()])
    dropped = torch.cat([found[key][~mask] for key, mask in masks.items()])
    assert kept.min() >= dropped.max()


def test_movement_that_was_not_recorded():
    model = perceptron()
    movement = Movement(model)
    with pytest.raises(ValueError, match="no step was recorded"):
        supermask.prune(model, 0.5, movement)
    with pytest.raises(ValueError, match="movement was not recorded for 0.bias, 2.bias, 4.bias"):
        supermask.prune(model, 0.5, movement, include="*")
    movement.stop()


def test_many_batches_in_low_precision_add_up():
    model = nn.Linear(4, 3).bfloat16()
    x, y = torch.randn(2, 4), torch.tensor([0, 1])
    one, many = (score_of("taylor", model, [(x.bfloat16(), y)] * n) for n in (1, 300))
    assert np.allclose(one["weight"], many["weight"], rtol=1e-3)
    assert (one["weight"] > 0).all()


def test_unknown_scores_name_the_nearest():
    with pytest.raises(ValueError, match="unknown score 'synflo'; did you mean 'synflow'.*magnitude, l1, l2, random"):
        find_score("synflo")
    assert isinstance(
        find_score(SCORES["l2"])(perceptron(), find_targets(perceptron()), Evidence())["0.weight"], Tensor
    )
