"""Whether a run that is asked for once more was given the same: weights, samples and the code of functions."""

import functools
import importlib
import re
import shutil
import sys
import types
import warnings
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ticket_search import Interrupted, RequestError, RunError, resume, search
from ticket_search.running.request import request_of
from ticket_search.running.search import carry_out, prepare
from ticket_search.runs.inputs import Inputs, digest_of_code, digests_of_code, read_inputs
from ticket_search.runs.run import Run
from ticket_search.sweeps.sweep import plan_sweep, read_sweep
from ticket_search.training import loop

NET = """
from torch import nn
WIDTH = 30
def helper(x):
    return x.flatten(1)
class Net(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.a, self.b = nn.Linear(64, width), nn.Linear(width, 10)
    def forward(self, x):
        return self.b(self.a(helper(x)).relu())
def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)
"""


def cell(code: str) -> dict:
    """What a cell of a notebook defines: in `__main__`, without a file."""
    names = {"__name__": "__main__"}
    exec(code, names)
    return names


def digest(code: str, name: str = "Net") -> str:
    return digest_of_code([cell(code)[name]])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".relu()", ".tanh()"),
        ("x.flatten(1)", "x.flatten(1) * 2"),
        ("WIDTH = 30", "WIDTH = 31"),
        ("nn.Linear(64, width)", "nn.Linear(64, width, bias=False)"),
        ("width=WIDTH", "width=30 + 1"),
        ("class Net(nn.Module)", "class Base(nn.Module):\n    rate = 2\nclass Net(Base)"),
    ],
)
def test_code_is_the_same_until_it_is_changed(old, new):
    assert NET.count(old) == 1
    assert digest(NET) == digest(NET) != ""
    assert digest(NET) == digest("\n\n# moved down\n" + NET)
    assert digest(NET) != digest(NET.replace(old, new))


def test_everything_that_a_function_uses_counts():
    def closed(value):
        return lambda x: x * value

    def make(default):
        def function(x, y=default):
            return [each + y for each in x]

        return function

    assert digest_of_code([closed(1)]) == digest_of_code([closed(1)]) != digest_of_code([closed(2)])
    assert digest_of_code([make(1)]) == digest_of_code([make(1)]) != digest_of_code([make(2)])
    assert digest_of_code([functools.partial(make(1), y=3)]) != digest_of_code([functools.partial(make(1), y=4)])
    assert digest_of_code([lambda x: x in {"a", "b", "c"}]) == digest_of_code([lambda x: x in {"c", "b", "a"}])


class Weighted:
    """A loss that is an object, with what it carries."""

    def __init__(self, weight, smoothing=0.0):
        self.weight, self.smoothing, self.itself = weight, smoothing, [self]

    def __call__(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, self.weight, label_smoothing=self.smoothing)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, outputs, targets):
        return self.scale * nn.functional.cross_entropy(outputs, targets)


class Named(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.layer = how, nn.Dropout(0.5)

    def forward(self, x):
        return getattr(self.layer(x), self.how)()


class Mode(Enum):
    mean = 1
    sum = 2


def cached(value):
    return functools.lru_cache(lambda x: x * value)


def without_gradients(value):
    return torch.no_grad()(lambda x: x * value)


def in_a_circle(value):
    circle = [value]
    circle.append({"again": circle})
    return lambda x: (x, circle)


def of_a_module(value):
    module = types.ModuleType("__main__")
    module.scale = lambda x: x * value
    return eval("lambda x: helpers.scale(x)", {"helpers": module, "__name__": "__main__"})


def method_of(value):
    return Weighted(None, value).__call__


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (lambda v: Weighted(torch.tensor(v)), [1.0, 2.0], [1.0, 3.0]),
        (lambda v: Weighted(np.array(v)), [1.0, 2.0], [1.0, 3.0]),
        (lambda v: Weighted(None, v), 0.0, 0.1),
        (lambda v: Weighted(None, Mode[v]), "mean", "sum"),
        (lambda v: Weighted(None, {"a": {v}}), "b", "c"),
        (lambda v: Weighted(None, [*range(20_000), v]), 0, 1),
        (Slotted, 1, 2),
        (lambda v: nn.CrossEntropyLoss(label_smoothing=v), 0.0, 0.1),
        (lambda v: nn.CrossEntropyLoss(weight=torch.tensor(v)), [1.0, 2.0], [1.0, 3.0]),
        (lambda v: functools.partial(nn.functional.cross_entropy, label_smoothing=v), 0.0, 0.1),
        (lambda v: v, nn.MSELoss(), nn.L1Loss()),
        (cached, 1, 2),
        (without_gradients, 1, 2),
        (in_a_circle, 1, 2),
        (of_a_module, 1, 2),
        (method_of, 0.0, 0.1),
        (lambda v: functools.partial(cached(v), v), 1, 2),
        (lambda v: nn.Sequential(Named(v)), "relu", "tanh"),
    ],
)
def test_what_an_object_carries_counts(make, one, other):
    """An object that is called is code too: its class, and every setting and number that it carries."""
    assert digest_of_code([make(one)]) == digest_of_code([make(one)]) != ""
    assert digest_of_code([make(one)]) != digest_of_code([make(other)])


def test_what_a_network_carries_counts_but_its_tensors():
    def digests(network):
        return digests_of_code({"model": lambda: None}, network)["the network"]

    class Rate(nn.Module):
        def __init__(self, rate=0.5, how="relu"):
            super().__init__()
            self.layer, self.dropout, self.head = nn.Linear(3, 3), nn.Dropout(rate), Named(how)
            self.register_buffer("drawn", torch.randn(3), persistent=False)

    assert digests(Rate()) == digests(Rate()) == digests(Rate().eval())
    assert len({digests(Rate()), digests(Rate(0.1)), digests(Rate(how="tanh"))}) == 3
    hooked = Rate()
    hooked.register_forward_hook(lambda module, x, y: y * 2)
    assert digests(hooked) != digests(Rate())
    assert digests_of_code({}, nn.Sequential(nn.Linear(2, 2))) == {}


def test_a_loss_with_another_setting_is_refused(samples, tmp_path, monkeypatch):
    """Tried: `label_smoothing=0.9` gave the finished run of 0.0, in silence."""
    monkeypatch.chdir(tmp_path)
    names = cell(NET)
    for make in (
        lambda value: nn.CrossEntropyLoss(label_smoothing=value),
        lambda value: functools.partial(nn.functional.cross_entropy, label_smoothing=value),
        lambda value: Weighted(None, value),
    ):
        given = {"loss": make(0.0)}
        first = again({**names, **given}, samples)
        assert again({**names, "loss": make(0.0)}, samples).path == first.path
        with pytest.raises(RequestError, match=r"something else \(the code of the loss, or what it carries\)"):
            again({**names, "loss": make(0.9)}, samples)
        shutil.rmtree("runs")


def test_packages_of_an_environment_below_this_one_are_none_of_the_users(tmp_path, monkeypatch):
    from ticket_search.runs import inputs
    from ticket_search.trust import mark

    below, own = tmp_path / "base/lib/python3/site-packages", tmp_path / "mine"
    monkeypatch.setattr("sys.path", [str(own), str(below)])
    inputs._installed.cache_clear()
    try:
        assert str(below.resolve()) in inputs._installed() and str(below.resolve()) in mark._installed()
        assert str(own.resolve()) not in inputs._installed() and str(own.resolve()) not in mark._installed()
    finally:
        inputs._installed.cache_clear()


def test_code_that_is_installed_or_ours_is_none_of_the_users():
    assert digest_of_code([nn.Linear, torch.relu, search, np.mean, functools.reduce]) == ""


def test_what_differs_is_named():
    one = Inputs("w", "d", {"the network": "a", "the loss": "b"})
    assert one.differences(one) == []
    other = Inputs("v", "e", {"the network": "c", "the loss": "b"})
    assert other.differences(one) == [
        "the code of the network, or what it carries",
        "the samples",
        "the weights that the network begins with",
    ]
    assert Inputs("w", "d", {}).differences(one) == [
        "the code of the loss, or what it carries",
        "the code of the network, or what it carries",
    ]
    assert Inputs("w", "d", {"the network": "z"}, "3.1").differences(one) == []


def again(names: dict, data, **flags):
    given = {"epochs": 1, "name": "cell", "progress": False, "threads": 1, **flags}
    return search("one-shot", names["Net"], data, loss=names["loss"], **given)


@pytest.fixture
def samples():
    draw = np.random.default_rng(0)
    return draw.normal(size=(300, 8, 8)).astype("float32"), np.arange(300) % 10


def test_a_cell_may_run_twice_and_a_changed_one_is_refused(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = again(cell(NET), samples)
    written = first.path.stat().st_mtime_ns, (first.path / "summary.json").stat().st_mtime_ns
    second = again(cell(NET), samples)
    assert second.path == first.path and second.summary == first.summary and len(second.levels) == len(first.levels)
    assert written == (first.path.stat().st_mtime_ns, (first.path / "summary.json").stat().st_mtime_ns)
    x, y = samples
    for names, data, flags, told in [
        (
            cell(NET.replace(".relu()", ".tanh()")),
            samples,
            {},
            "something else (the code of the network, or what it carries)",
        ),
        (cell(NET.replace("(outputs, targets)\n", "(2 * outputs, targets)\n")), samples, {}, "the code of the loss"),
        (cell(NET.replace("WIDTH = 30", "WIDTH = 31")), samples, {}, "the network begins with"),
        (cell(NET), (x + 1, y), {}, "--data arrays-"),
        (cell(NET), samples, {"seed": 1}, "seed"),
    ]:
        with pytest.raises(
            RequestError, match=re.escape(told) + r".*choose another name, or `ticket runs rm runs/cell`"
        ):
            again(names, data, **flags)
    assert [path.name for path in Path("runs").iterdir()] == ["cell"]


def test_a_stopped_run_does_not_go_on_with_other_code_unless_it_is_given(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_on = loop._Loop._train_on

    def stop(self, x, y):
        self.run.stop()
        train_on(self, x, y)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_train_on", stop)
        with pytest.raises(Interrupted):
            again(cell(NET), samples)
    assert read_inputs(tmp_path / "runs/cell").code.keys() == {"the network", "the loss"}
    changed = cell(NET.replace(".relu()", ".tanh()"))
    with pytest.raises(RunError, match="the code of the network, or what it carries.: begin anew under another name"):
        again(changed, samples)
    with pytest.warns(UserWarning, match="the code of the network, or what it carries.; it goes on with what it is"):
        run = resume("cell", model=changed["Net"], data=samples, loss=changed["loss"], progress=False)
    assert "the code of the network" in run.summary["warnings"][0]


def test_a_changed_function_is_searched_again_by_the_command(ticket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["search", "--method", "one-shot", "--model", "mine_one:Net", "--epochs", "1", "--threads", "1"]
    Path("mine_one.py").write_text(NET.replace("def __init__(self, width=WIDTH)", "def __init__(self, width=30)"))
    assert ticket(*words).code == 0
    assert "is finished already" in ticket(*words).out
    import mine_one

    monkeypatch.setattr(mine_one.Net, "forward", lambda self, x: self.b(self.a(x.flatten(1))))
    told = ticket(*words)
    assert "(the code of the network, or what it carries); so this is a new run" in " ".join(told.err.split())
    assert len(list(Path("runs").iterdir())) == 2
    assert "is finished already" in ticket(*words).out


def test_a_sweep_does_not_mix_runs_of_other_code(ticket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine_two.py").write_text(NET)
    sweep = "seeds = '0-1'\n[base]\nmethod = 'one-shot'\nmodel = 'mine_two:Net'\nepochs = 1\ntrain_size = 160\nthreads = 1\n"
    code = {"model": "mine_two:Net"}
    monkeypatch.syspath_prepend(str(tmp_path))
    for seeds, old, new, told in [("0", "", "", ""), ("0-1", "", "", ""), ("0-2", ".relu()", ".tanh()", "the network")]:
        Path("some.toml").write_text(sweep.replace("0-1", seeds))
        Path("mine_two.py").write_text(NET.replace(old, new) if old else NET)
        sys.modules.pop("mine_two", None)
        importlib.invalidate_caches()
        shutil.rmtree("__pycache__", ignore_errors=True)
        if told:
            with pytest.raises(
                RequestError,
                match=r"was given something else \(the code of the network, or what it carries\): choose another",
            ):
                plan_sweep(read_sweep("some.toml", code=code), "runs")
        else:
            plan = plan_sweep(read_sweep("some.toml", code=code), "runs")
            for run in plan.runs:
                if run.state == "new":
                    config, setup = prepare(request_of(run.config))
                    carry_out(Run(run.folder, config, setup))
    assert len(list(Path("runs/some").iterdir())) == 2


def test_resume_tells_of_another_loss_and_of_a_finished_run_that_was_given_other_things(samples, tmp_path, monkeypatch):
    """Tried: `resume` went on with another loss, and returned a finished run to whoever gave it other data, in silence."""
    monkeypatch.chdir(tmp_path)
    names = cell(NET)
    first = again(names, samples)
    given = {"model": names["Net"], "data": samples, "loss": names["loss"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume("cell", **given, progress=False).path == first.path
    changed = cell(NET.replace(".relu()", ".tanh()"))
    for other in ({"model": changed["Net"]}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.3)}):
        with pytest.warns(UserWarning, match="was given something else"):
            resume("cell", **{**given, **other}, progress=False)


def test_a_stopped_run_of_functions_says_how_it_goes_on(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_on = loop._Loop._train_on

    def stop(self, x, y):
        self.run.stop()
        train_on(self, x, y)

    monkeypatch.setattr(loop._Loop, "_train_on", stop)
    with pytest.raises(
        Interrupted, match=r'the same call, or ticket_search.resume\("runs/cell", model=..., data=...\)'
    ):
        again(cell(NET), samples)
