from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import NETWORKS
from scipy.special import ndtri
from torch import nn

import supermask
from supermask import draw, initialize
from supermask.masks.random_numbers import _log, lots, normal, permutation, signs, uniform
from supermask.weights import inits
from supermask.weights.inits import INITS, WEIGHT_INITS, draw_at

SHAPE = (257, 19, 3)

# SHA-256 of draw(init, SHAPE, seed=7, name="layer.weight", scale=1.5): the file format relies on these never changing.
GOLDEN = {
    "kaiming-normal": "6909e6d456874a5a",
    "kaiming-uniform": "b7b12e0ab05b7a86",
    "signed-constant": "83f537afd86e4064",
    "unsigned-constant": "dbf45d58e4daa28e",
    "xavier-normal": "8297d0d4b3e539aa",
    "zeros": "c46619b971a07233",
    "ones": "69076e7a0f25a401",
}


def digest(init: str) -> str:
    tensor = draw(init, SHAPE, 7, "layer.weight", 1.5)
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("init", INITS)
def test_golden_fingerprints(init):
    assert digest(init) == GOLDEN[init]


@pytest.mark.parametrize("init", INITS)
def test_numbers_at_some_places_are_those_of_the_whole(init):
    shape, places = (70, 3, 5), np.array([0, 1, 63, 64, 65, 511, 700, 1049])
    whole = draw(init, shape, 11, "layer.weight", 0.7).flatten()
    found = draw_at(init, shape, 11, "layer.weight", places, 0.7)
    assert found.dtype == torch.float32
    assert torch.equal(found.view(torch.int32), whole[torch.from_numpy(places)].view(torch.int32))
    assert not len(draw_at(init, shape, 11, "layer.weight", places[:0]))


@pytest.mark.parametrize("share", [0, 1e-20, 0.1, 1 / 3, 0.5, 0.9999, 1 - 2**-53, 1])
def test_lots_are_uniform_numbers_below_the_share(share):
    assert np.array_equal(lots(5000, share, 3, "x"), uniform(5000, 3, "x") < share)
    numbers = uniform(50, 3, "x")
    for number in numbers[:5]:  # on the border: a number is not below itself, and below the next one
        assert np.array_equal(lots(50, number, 3, "x"), numbers < number)
        assert np.array_equal(lots(50, np.nextafter(number, 1), 3, "x"), numbers <= number)


@pytest.mark.slow
def test_fingerprints_without_vector_instructions():
    """In a process whose NumPy uses none: the same draws, and old files whose fingerprints still hold."""
    features = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR AVX2 FMA3 X86_V3 X86_V4"
    code = (
        "import sys; sys.path.insert(0, 'tests'); import supermask, test_fixtures, test_inits as t\n"
        "for path in test_fixtures.FILES:\n"
        "    ticket = supermask.load(path)\n"
        "    for state in ticket.states: ticket.state_dict(state)\n"
        "for init in t.INITS: print(init, t.digest(init))\n"
    )
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": features}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert dict(line.split() for line in answer.stdout.splitlines()) == GOLDEN


def test_draws_depend_on_seed_and_name():
    one = draw("kaiming-normal", (20, 30), 0, "a")
    assert torch.equal(one, draw("kaiming-normal", (20, 30), 0, "a"))
    assert not torch.equal(one, draw("kaiming-normal", (20, 30), 1, "a"))
    assert not torch.equal(one, draw("kaiming-normal", (20, 30), 0, "b"))


@pytest.mark.parametrize("init", WEIGHT_INITS)
def test_moments(init):
    tensor = draw(init, (400, 500), 0, "w", scale=2.0).double()
    expected = math.sqrt(2 / 900) if init == "xavier-normal" else math.sqrt(2 / 500)
    assert torch.sqrt((tensor**2).mean()) == pytest.approx(2 * expected, rel=0.01)
    if init != "unsigned-constant":
        assert abs(tensor.mean()) < 0.01 * expected * 2
    if "constant" in init:
        assert tensor.abs().unique().numel() == 1


def test_normal_follows_the_exact_quantiles():
    u = uniform(200_000, 3, "q")
    assert np.abs(normal(200_000, 3, "q") - ndtri(u)).max() < 1e-14
    assert 0 < u.min() < u.max() < 1


def test_log_of_extreme_numbers():
    x = np.array([5e-324, 2.0**-53, 0.1, 0.5, 0.7071, 1.0, 1.5, 1e300])
    assert np.allclose(_log(x), np.log(x), rtol=4e-16, atol=1e-16)


def test_signs_are_balanced_and_permutation_is_one():
    assert abs(signs(100_000, 0, "s").sum()) < 1000
    assert sorted(permutation(1000, 0, "p")) == list(range(1000))


@pytest.mark.parametrize("name", NETWORKS)
def test_initialize_sets_weights_biases_and_norms(name):
    model = NETWORKS[name][0]()
    token = model.token.clone() if name == "attention" else None
    draws = initialize(model, "signed-constant", seed=5, scale=3.0)
    assert "token" not in draws
    for parameter_name, how in draws.items():
        assert torch.equal(model.get_parameter(parameter_name), how.tensor(parameter_name))
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
    assert token is None or torch.equal(model.token, token)


def test_unscaled_layers():
    model = NETWORKS["perceptron"][0]()
    draws = initialize(model, "kaiming-normal", 0, scale=2.0, unscaled=["4"])
    assert {name: how.scale for name, how in draws.items() if "weight" in name} == {
        "0.weight": 2.0, "2.weight": 2.0, "4.weight": 1.0,
    }  # fmt: skip


def test_unknown_init_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'signed-constant'"):
        draw("signed_constant", (2, 2), 0, "w")
    with pytest.raises(ValueError, match="the inits are"):
        initialize(NETWORKS["perceptron"][0](), "zeros", 0)


def test_fingerprint_sees_every_bit():
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    base = supermask.fingerprint(tensors)
    assert base == supermask.fingerprint(dict(reversed(tensors.items())))
    assert base != supermask.fingerprint({**tensors, "a": -torch.zeros(3)})
    assert base != supermask.fingerprint({**tensors, "b": torch.ones(4)})
    assert base != supermask.fingerprint({"a": tensors["a"], "c": tensors["b"]})


@pytest.mark.parametrize("name", inits.GAINS)
def test_gains_are_those_of_torch_or_keep_the_variance(name):
    from scipy import integrate, stats

    known = {"relu": ("relu",), "leaky-relu": ("leaky_relu", 0.01), "tanh": ("tanh",), "identity": ("linear",)}
    if name in known:
        assert inits.GAINS[name] == pytest.approx(torch.nn.init.calculate_gain(*known[name]), rel=1e-12)
    else:
        assert name == "gelu"
        second, _ = integrate.quad(lambda z: (z * stats.norm.cdf(z)) ** 2 * stats.norm.pdf(z), -12, 12, epsabs=1e-13)
        assert inits.GAINS[name] == pytest.approx(second**-0.5, rel=1e-9)


@pytest.mark.parametrize("init", inits.WEIGHT_INITS)
@pytest.mark.parametrize("gain", ["tanh", 0.5])
def test_a_gain_is_that_of_all_weights(init, gain):
    model = torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.Linear(300, 200))
    draws = inits.initialize(model, init, seed=0, scale=2.0, unscaled="1.weight", gain=gain)
    factor = inits.GAINS[gain] if isinstance(gain, str) else gain
    for name, scale in (("0.weight", 2.0), ("1.weight", 1.0)):
        weight = model.get_parameter(name).detach()
        fans = sum(weight.shape) / 2 if init == "xavier-normal" else weight.shape[1]
        assert weight.square().mean().sqrt() == pytest.approx(scale * factor / fans**0.5, rel=0.01)
        assert torch.equal(weight, draws[name].tensor(name))


def test_the_gain_of_relu_changes_no_bit():
    models = [torch.nn.Sequential(torch.nn.Linear(9, 5)) for _ in range(2)]
    one, other = (
        inits.initialize(model, "kaiming-normal", 1, gain=g) for model, g in zip(models, (None, "relu"), strict=True)
    )
    assert one == other
    assert torch.equal(models[0][0].weight, models[1][0].weight)


@pytest.mark.parametrize("gain", ["swish", 0.0, -1.0, float("inf")])
def test_gains_that_are_none(gain):
    with pytest.raises(ValueError, match="gain"):
        inits.initialize(torch.nn.Linear(2, 2), "kaiming-normal", 0, gain=gain)
