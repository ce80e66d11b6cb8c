"""What the runs of a sweep work on and what they do, counted and timed before the first one starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..contract.errors import Problems, RequestError, RunError, command_line
from ..contract.flags import Config, steps_of, to_plain
from ..contract.method import Stage
from ..data.samples import Samples, whole_batches
from ..data.trees import to_lists
from ..methods import find_method
from ..running.duration import Costs
from ..running.plan import make_plan, plan_stages
from ..running.search import check_code, digest_code
from ..runs.experiment import (
    Setup,
    devices,
    exact_arithmetic,
    find_model,
    load_data,
    make_setup,
    own_random_numbers,
    resolve,
)
from ..runs.inputs import Inputs, read_inputs
from ..training.objective import make_objective
from ..training.trial import check_model

# The flags that the time of a training step does not depend on.
_UNTIMED = (
    "seed", "init_seed", "order_seed", "mask_seed", "split_seed", "density", "epochs", "lr", "momentum", "nesterov",
    "weight_decay", "schedule", "milestones", "drop", "warmup", "label_smoothing", "init", "init_gain", "dtype",
)  # fmt: skip
# The flags that the ending of a training depends on, and a step with masks that are held.
_OF_ENDING = (
    "model", "model_args", "activation", "data", "data_dir", "train_size", "batch_size", "precision", "channels_last",
    "compile", "threads", "device", "image_size", "image_mean", "image_std", "workers", "crop", "flip", "optimizer",
    "accumulate", "loss", "metric",
)  # fmt: skip
# The flags that the data in memory depend on.
_OF_DATA = (
    "data", "data_dir", "train_size", "split_seed", "crop", "flip", "image_size", "image_mean", "image_std",
    "max_bad_images", "workers", "device",
)  # fmt: skip


def resolve_for_gpus(config: Config) -> Config:
    """The configuration of a run that a cluster gives a GPU, which this machine need not have.

    Raises:
        RequestError: it depends on what the GPU is, which nobody knows here.
    """
    if config.device not in ("auto", "cuda"):
        return resolve(config)
    if config.precision == "auto":
        raise RequestError("--precision auto: a GPU of a cluster is not known here; expected fp32, bf16 or fp64")
    return resolve(config.model_copy(update={"device": "cpu"})).model_copy(update={"device": "cuda"})


@dataclass(frozen=True)
class Loaded:
    """Data, and the seconds in which they were read."""

    samples: Samples
    seconds: float


@dataclass(frozen=True)
class Counted:
    """What a run works on, and what it does."""

    setup: Setup
    stages: list[Stage]
    evaluate_every: int
    loading: float

    @property
    def steps(self) -> int:
        """Its steps."""
        return sum(stage.steps for stage in self.stages)


def _set_up(config: Config, loaded: dict[str, Loaded]) -> Setup:
    """The network and the data of a run. Data that several runs have in common are read once.

    Raises:
        RequestError: every problem at once.
    """
    problems = Problems()
    check_code(config, {})
    key = repr([getattr(config, name) for name in _OF_DATA])

    def load() -> None:
        if key not in loaded:
            began = time.perf_counter()
            samples = load_data(config.data, config).to(config.device)
            loaded[key] = Loaded(samples, time.perf_counter() - began)

    problems.attempt(load)
    problems.attempt(lambda: find_model(config.model, config.leaves))
    problems.attempt(lambda: make_objective(config))
    problems.raise_if_any()
    return make_setup(find_method(config.method), config.model, loaded[key].samples, config)


def count_steps(config: Config, loaded: dict[str, Loaded], controls_on: str) -> Counted:
    """What a run works on, and the number of its steps.

    Raises:
        RequestError: every problem at once, among them data for its controls on which its masks do not fit.
    """
    if not devices()[config.device]:
        config = config.model_copy(update={"device": "cpu"})  # a GPU of a cluster: it is only counted here
    setup = _set_up(config, loaded)
    if controls_on:
        # A mask of one network does not fit another, and data of another shape have another network.
        other = _set_up(config.model_copy(update={"data": controls_on}), loaded).data
        here, there = ((to_lists(data.input_shape), data.classes) for data in (setup.data, other))
        if here != there:
            raise RequestError(
                f"controls_on {controls_on}: samples of shape {there[0]} in {there[1]} classes; the masks of "
                f"{config.data} fit {here[0]} in {here[1]} classes"
            )
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        check_model(setup, config, model)
        stages = plan_stages(config, setup, setup.targets(config, model))
    every = steps_of(config.evaluate_every, whole_batches(setup.data.train_size, config.batch_size))
    seconds = next(each.seconds for each in loaded.values() if each.samples is setup.data)
    return Counted(setup, stages, every, seconds)


def check_given(config: Config, folders: Sequence[Path], loaded: dict[str, Loaded]) -> None:
    """Check that runs of a configuration, in folders that are there, were given the code that there is now.

    Only those that have recorded code of the user's own are looked at: the others can have been given no other.

    Raises:
        RequestError: one was given other code, which the rest of the sweep would not be comparable with.
    """
    given = {folder: read_inputs(folder) for folder in folders}
    known = {folder: inputs for folder, inputs in given.items() if inputs is not None and inputs.code}
    if not known:
        return
    setup = _set_up(config, loaded)
    with own_random_numbers():
        code = digest_code(setup, config, setup.make_model(config))
    for folder, inputs in known.items():
        if differs := Inputs(inputs.start, inputs.data, code).differences(inputs):
            raise RequestError(
                f"the run {folder} was given something else ({', '.join(differs)}): choose another --runs, or "
                f"`{command_line('runs', 'rm', folder)}`"
            )


def time_run(config: Config, counted: Counted, name: str, timed: dict[str, Costs]) -> Costs:
    """What the parts of a run take, measured once for all runs that take the same time.

    What comes at the end of a training is measured once for all methods.

    Raises:
        RequestError: a step of training fails.
    """
    if not devices()[config.device]:
        return Costs()  # it is carried out on a cluster only, and the pace says how long it takes
    told = {name: value for name, value in to_plain(config).items() if name not in _UNTIMED}
    key = repr(told)
    of_ending = repr({name: value for name, value in told.items() if name in _OF_ENDING})
    if key not in timed:
        try:
            plan = make_plan(config, counted.setup, timed.get(of_ending))
        except RequestError:
            raise
        except RunError:
            # A loss that is no number within the first steps: the run will say so, and the others go on.
            return Costs()
        except Exception as error:
            raise RequestError(f"{name}: a step of training raises {type(error).__name__}: {error}") from error
        timed[key] = replace(plan.costs, loading=counted.loading)
        timed.setdefault(of_ending, timed[key])
    return timed[key]
