"""Searches on a device that is not the CPU: they run, and no step, evaluation or augmentation waits for the host."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from method_tests import Searches, count_steps
from products import thin
from second_device import SECOND, counting_waits, letting_the_host_wait, refusing_the_host, second_device
from torch.utils._pytree import tree_leaves

import supermask
from supermask.live import learned
from supermask.live.held import mask_gradients
from supermask.live.program import program_of
from supermask.masks.random_numbers import permutation
from ticket_search import Interrupted, RequestError, resume
from ticket_search.contract.flags import make_config
from ticket_search.contract.method import Hook
from ticket_search.data.augmentation import Augmentation
from ticket_search.data.dataset import from_arrays
from ticket_search.data.sources import read_samples
from ticket_search.methods import find_method, method_names
from ticket_search.running import search as searching
from ticket_search.runs import experiment
from ticket_search.runs.environment import describe_environment
from ticket_search.runs.loggers import tensorboard
from ticket_search.runs.records import write_record
from ticket_search.sweeps.engines import local
from ticket_search.training import evaluation, loop
from ticket_search.training.precision import compile_whole

METHODS = method_names()


@dataclass
class Seen:
    """What a search did on the device: steps, updates of masks that waited, waits of each evaluation and its batches."""

    steps: int = 0
    updates: int = 0
    evaluations: list[tuple[int, int]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch) -> Iterator[Seen]:
    """Runs resolve to the second device, and each training step is refused whatever the host would wait for."""
    found, resolve, make = Seen(), experiment.resolve, loop.make_optimizer
    train_on, run_to_end, validate = loop._Loop._train_on, loop._Loop.run_to_end, loop._Loop._validate
    all_batches = loop._Loop._batches_of

    def guarded(self, x, y):
        found.steps += 1
        with refusing_the_host():
            return train_on(self, x, y)

    def guarded_batches(self, *args):
        batches = iter(all_batches(self, *args))
        yield next(batches)  # the epoch's order and random numbers come with the first one
        while True:
            with refusing_the_host():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def with_watched_hook(self):
        on_step, before_step = self.hook.on_step, self.hook.before_step

        def watched(call, *args):
            with letting_the_host_wait(), counting_waits() as waits:
                result = call(*args)
            found.updates += bool(waits)
            return result

        self.hook.on_step = partial(watched, on_step)
        self.hook.before_step = partial(watched, before_step)
        return run_to_end(self)

    def counted(self):
        batches = -(-self.data.held_out_size("validation") // evaluation.BATCH)
        with counting_waits() as waits:
            result = validate(self)
        found.evaluations.append((len(waits), batches))
        return result

    def without_fused_steps(*args):
        optimizer = make(*args)
        for group in optimizer.param_groups:
            group["fused"] = False  # which PyTorch has for devices that it knows
        return optimizer

    monkeypatch.setattr(searching, "resolve", lambda config: resolve(config).model_copy(update={"device": SECOND.type}))
    monkeypatch.setattr(loop._Loop, "_train_on", guarded)
    monkeypatch.setattr(loop._Loop, "_batches_of", guarded_batches)
    monkeypatch.setattr(loop._Loop, "run_to_end", with_watched_hook)
    monkeypatch.setattr(loop._Loop, "_validate", counted)
    monkeypatch.setattr(loop, "make_optimizer", without_fused_steps)
    with second_device():
        yield found


# What moves masks now and then, and then reads how many have moved.
UPDATES = {"gradual": 2, "rigl": 3, "set": 2, "iterand": 16, "gem-miner": 1, "early-bird": 1}
OFTEN = {"gradual": {"prune_every": "4it"}}


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_host(method, seen, tmp_path):
    searches = Searches(tmp_path, model_args="width=0.2", train_size=640, batch_size=80)
    run = searches.search(method, **OFTEN.get(method, {}))
    assert seen.steps >= 16 and run.summary["kept"] > 0
    assert seen.updates == UPDATES.get(method, 0), "between its updates a hook waits for nothing"
    assert {waits for waits, _ in seen.evaluations} == {2}, "the sums of loss and metric"


TRAINED = {
    "augmented": {"crop": 1, "flip": True},
    "in parts": {"clip": 0.5, "accumulate": 2, "label_smoothing": 0.1},
    "channels last": {"channels_last": True, "optimizer": "sgd"},
}
MASKED = {
    "global": {"allocation": "global"},
    "2:4": {"granularity": "2:4", "exclude": ("features.0", "classifier.4"), "density": 0.5},
    "trained norms": {"train_norms": True},
}
CASES = [(method, case) for case in TRAINED for method in ("dense", "edge-popup", "gradual", "biprop", "imp")]
CASES += [(method, case) for case in MASKED for method in ("edge-popup", "biprop")]


@pytest.mark.parametrize("case", thin(CASES, 2), ids="-".join)
def test_no_step_of_a_convolutional_network_waits(case, seen, tmp_path):
    method, flags = case
    searches = Searches(tmp_path, model="conv2", model_args="width=0.125", train_size=320, batch_size=80, epochs=1)
    searches.search(method, **{**TRAINED, **MASKED}[flags])
    assert seen.steps >= 4 and {waits for waits, _ in seen.evaluations} == {2}


def test_the_waits_of_an_evaluation_do_not_grow_with_its_batches(seen, tmp_path, monkeypatch):
    searches = Searches(tmp_path, model_args="width=0.2", train_size=160, batch_size=80, epochs=1)
    for size in (16, 1024):
        monkeypatch.setattr(evaluation, "BATCH", size)
        searches.search("edge-popup")
    (few_waits, many), *_, (waits, one) = seen.evaluations
    assert many > 5 and one == 1 and few_waits == waits


def test_what_waits_is_seen():
    with second_device():
        x = torch.arange(4.0).to(SECOND)
        for wait in (
            lambda: x.sum().item(), lambda: x.cpu(), lambda: x.nonzero(), lambda: x[x > 1], lambda: torch.ones(3).to(SECOND),
            lambda: bool((x > 1).any()), lambda: x.tolist(), lambda: x.copy_(torch.zeros(4)), lambda: x[torch.tensor([1])],
        ):  # fmt: skip
            with counting_waits() as waits:
                wait()
            assert len(waits) == 1
            with refusing_the_host(), pytest.raises(AssertionError, match="the host waits for the device"):
                wait()
        with refusing_the_host():
            torch.ones(4).to(SECOND, non_blocking=True).add_(x).sum()


def test_histograms_are_counted_there_and_read_at_once(tmp_path):
    draw = torch.Generator().manual_seed(0)
    values = {
        "normal": torch.randn(1000, generator=draw),
        "one": torch.full((7,), 0.25),
        "odd": torch.randn(50, generator=draw),
    }
    values["odd"][:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    values["none"] = torch.full((4,), torch.nan)
    here = tensorboard._count_all(values)
    with second_device():
        far = {tag: value.to(SECOND) for tag, value in values.items()}
        with counting_waits() as waits:
            there = tensorboard._count_all(far)
    assert len(waits) == 1 and there.keys() == here.keys()
    for tag, expected in here.items():
        assert there[tag].keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(there[tag][key], value, rtol=1e-6, atol=1e-9, err_msg=f"{tag} {key}")


def test_frozen_weights_are_hashed_once_and_compared_there():
    with second_device():
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)).to(SECOND)
        supermask.learn(net, 0.5)
        program = program_of(net)
        supermask.check(net)
        with mock.patch.object(learned, "fingerprint", side_effect=AssertionError("hashed again")):
            supermask.check(net)
            with torch.no_grad():
                net[0].weight.view(-1)[:1].neg_()
            with pytest.raises(ValueError, match="the frozen weights have changed"):
                supermask.check(net)
        assert program.fingerprint


@pytest.mark.parametrize(
    ("device", "shape", "size"),
    [("cpu", (3, 32, 32), 128), ("cuda", (3, 32, 32), 1365), ("cuda", (1, 28, 28), 4096), ("cuda", (3, 224, 224), 128),
     ("cuda", {"a": (4,), "b": (3, 32, 32)}, 1363), ("cuda", ((4, 4), (2,)), 4096)],
)  # fmt: skip
def test_how_many_samples_are_evaluated_at_once(device, shape, size):
    data = SimpleNamespace(device=torch.device(device), input_shape=shape)
    assert evaluation.batch_of(data) == size


@pytest.mark.parametrize("program", ["edge-popup", "bernoulli", "hard-concrete"])
def test_an_evaluation_chooses_its_masks_once(program, tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    weights = {"weights": "keep"} if program == "hard-concrete" else {}
    supermask.learn(net, 0.5, program=program, **weights)
    data = read_samples("digits", None, 0)
    chosen = []
    rule = program_of(net).rule
    effective = type(rule).effective
    with mock.patch.object(
        type(rule), "effective", lambda self, layers: (chosen.append(1), effective(self, layers))[1]
    ):
        once = evaluation.evaluate(net, data, "test")
        assert len(chosen) == 1
        with mock.patch.object(learned.Learned, "steady", contextlib.nullcontext):
            anew = evaluation.evaluate(net, data, "test")
        assert len(chosen) == 1 + -(-data.held_out_size("test") // 128)
    assert once == anew


def test_the_logged_speed_is_that_of_steps(tmp_path, monkeypatch):
    """What is done once an epoch takes no time of training: by a clock that only these calls and steps move."""
    moved = {"by": 0.0}

    class Clock:
        @staticmethod
        def perf_counter():
            return moved["by"]

    train_on, on_epoch = loop._Loop._train_on, Hook.on_epoch

    def step(self, x, y):
        moved["by"] += 1.0
        return train_on(self, x, y)

    def epoch(self, *args):
        moved["by"] += 1000.0
        return on_epoch(self, *args)

    monkeypatch.setattr(loop, "time", Clock)
    monkeypatch.setattr(loop._Loop, "_train_on", step)
    monkeypatch.setattr(Hook, "on_epoch", epoch)
    run = Searches(tmp_path, model_args="width=0.1", train_size=320, batch_size=80).search(
        "dense", evaluate_every="2it"
    )
    speeds = [row["speed/samples-per-second"] for row in run.metrics if "speed/samples-per-second" in row]
    assert len(speeds) == 4 and set(speeds) == {80.0}


def test_images_lie_there_as_bytes_and_are_given_out_as_they_were():
    data = read_samples("digits", None, 0)
    assert data.train_x.dtype == torch.float32 and not data.packed
    with second_device():
        there = data.to(SECOND)
        assert there.packed and there.train_x.dtype == there.test_x.dtype == torch.uint8
        assert (there.input_shape, there.train_size) == (data.input_shape, data.train_size)
        for (x, y), (far_x, far_y) in zip(data.batches("test", 100), there.batches("test", 100), strict=True):
            assert far_x.device == SECOND and torch.equal(x, far_x.cpu()) and torch.equal(y, far_y.cpu())
        order = permutation(data.train_size, 0, "order")
        augmented = dataclasses.replace(data, augmentation=Augmentation(1, True))
        for one in (data, augmented):
            pairs = zip(one.train_batches(order, 64, 3), one.to(SECOND).train_batches(order, 64, 3), strict=True)
            assert all(torch.equal(x, far_x.cpu()) for (x, _), (far_x, _) in pairs)
        back, floats = there.to("cpu"), there.unpacked()
    assert torch.equal(back.train_x, data.train_x) and not back.packed
    assert torch.equal(floats.test_x.elem, data.test_x) and not floats.packed


@pytest.mark.parametrize("what", ["floats", "tokens", "double", "a tree"])
def test_what_is_no_image_of_bytes_lies_there_as_it_is(what):
    draw = np.random.default_rng(0)
    x = {
        "floats": draw.normal(size=(40, 1, 4, 4)).astype(np.float32),
        "tokens": draw.integers(0, 9, (40, 6)),
        "double": draw.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8),
        "a tree": {"a": draw.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8), "b": draw.normal(size=(40, 2))},
    }[what]
    data = from_arrays((x, np.arange(40) % 2), 0)
    data = data.double() if what == "double" else data
    with second_device():
        there = data.to(SECOND)
        assert not there.packed
        (far, _), (here, _) = next(there.batches("test", 4)), next(data.batches("test", 4))
        for one, other in zip(tree_leaves(far), tree_leaves(here), strict=True):
            assert torch.equal(one.cpu(), other)


def test_processes_of_a_sweep_take_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.find_gpus() == ["0", "1", "2"]
    taken = []
    for number in range(5):
        share = local.take_gpu(number, ["0", "1", "2"], 5)
        taken.append((os.environ["CUDA_VISIBLE_DEVICES"], share))
    assert taken == [(gpu, 0.45) for gpu in "01201"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-a,8,9")
    assert local.find_gpus() == ["7", "GPU-a", "8"]
    assert local.take_gpu(1, ["7", "GPU-a"], 2) == 0.9 and os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local.find_gpus() == []


def test_a_gpu_repeats_itself_and_its_versions_are_recorded(monkeypatch):
    config = make_config(find_method("dense").Config, {}).model_copy(update={"device": "cuda", "threads": 1})
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = (
        torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.deterministic,
        torch.backends.cuda.flash_sdp_enabled(),
    )  # fmt: skip
    with experiment.exact_arithmetic(config):
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        kernels = torch.backends.cuda
        assert not (kernels.flash_sdp_enabled() or kernels.mem_efficient_sdp_enabled() or kernels.cudnn_sdp_enabled())
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert before == (
        torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.deterministic,
        torch.backends.cuda.flash_sdp_enabled(),
    )  # fmt: skip
    assert torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    recorded = describe_environment(config)
    assert recorded["device"] == "H100" and recorded["capability"] == [9, 0]
    assert {"cuda", "cudnn", "driver", "deterministic"} <= recorded.keys()


@pytest.mark.parametrize("method", ["edge-popup", "imp", "gates"])
def test_a_run_that_was_begun_elsewhere_goes_on_here_and_says_so(method, seen, tmp_path, monkeypatch):
    """As where a GPU has begun it and only a CPU is there: the state is read, and what differs is told."""
    searches = Searches(tmp_path, model_args="width=0.2", train_size=320, batch_size=80)
    with monkeypatch.context() as patch:
        count_steps(patch, 3)
        with pytest.raises(Interrupted):
            searches.search(method)
    folder = next(tmp_path.glob("*/*"))
    assert 'device = "lazy"' in (folder / "config.toml").read_text()
    monkeypatch.setattr(searching, "resolve", experiment.resolve)
    text = (folder / "config.toml").read_text().replace('device = "lazy"', 'device = "cuda"')
    write_record(folder, "config.toml", tomllib.loads(text))
    with pytest.warns(UserWarning, match="the run was begun on cuda and goes on on cpu: .* its bytes are not those"):
        run = resume(folder, progress=False)
    assert run.finished and run.config.device == "cpu" and "begun on cuda" in run.summary["warnings"][0]
    steps = [row["step"] for row in run.metrics if "loss/train" in row]
    assert steps == sorted(set(steps))
    assert resume(folder, progress=False).summary == run.summary


def test_no_such_device_to_go_on_on(tmp_path):
    run = Searches(tmp_path, model_args="width=0.1", train_size=160, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, 1)
        with pytest.raises(Interrupted):
            run.search("dense")
    folder = next(tmp_path.glob("*/*"))
    with pytest.raises(RequestError, match="unknown device 'gpu'"):
        resume(folder, device="gpu", progress=False)


def test_outputs_that_the_next_pass_writes_over_are_copied_for_the_tally(tmp_path, monkeypatch):
    """As CUDA graphs do: after each step nothing is left of what the network has given."""
    searches = Searches(tmp_path, model_args="width=0.2", train_size=320, batch_size=80)
    expected = searches.search("dense").metrics
    differentiate, init = loop._Loop._differentiate, loop._Loop.__init__
    given = []

    def written_over(self, *args, **flags):
        for outputs in given:
            outputs.data.fill_(torch.nan)
        given.clear()
        differentiate(self, *args, **flags)

    def with_graphs(self, *args):
        init(self, *args)
        self.writes_over, forward = True, self.forward
        self.forward = lambda x: given.append(forward(x)) or given[-1]

    monkeypatch.setattr(loop._Loop, "_differentiate", written_over)
    monkeypatch.setattr(loop._Loop, "__init__", with_graphs)
    found = searches.search("dense").metrics
    for key in ("loss/train", "accuracy/train"):
        assert [row.get(key) for row in found] == [row.get(key) for row in expected]


def test_a_pass_that_is_a_graph_begins_a_step_each_time(monkeypatch):
    begun = []
    monkeypatch.setattr(torch, "compile", lambda forward, **flags: begun.append(flags) or forward)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append("step"))
    net = torch.nn.Linear(3, 2)
    forward, x = compile_whole(net, graphs=True), torch.ones(1, 3)
    assert torch.equal(forward(x), net(x)) and torch.equal(forward((x,)), net(x))
    assert begun == [{"mode": "reduce-overhead"}, "step", "step"]
    compile_whole(net)(x)
    assert begun[3:] == [{}]


def test_clipping_under_masks_from_a_file_waits_for_nothing_after_the_first_time():
    """Masks that were read lie on the CPU, and went to the device tensor by tensor in every step."""
    with second_device():
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)).to(SECOND)
        masks = supermask.prune(net, 0.5).to("cpu")
        supermask.hold(net, masks)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        mask_gradients(net)
        with refusing_the_host():
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            mask_gradients(net)
        for name, mask in masks.items():
            assert torch.equal(net.get_parameter(name).grad.cpu() != 0, mask)


def test_what_is_compiled_for_a_gpu_chooses_nothing_by_timing():
    import torch._inductor.config as inductor

    config = make_config(find_method("dense").Config, {}).model_copy(update={"device": "cuda", "threads": 1})
    with experiment.exact_arithmetic(config):
        # The compiler of PyTorch before 2.9 has no such choice.
        assert getattr(inductor, "deterministic", True)
    assert not getattr(inductor, "deterministic", False)
