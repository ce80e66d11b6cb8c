"""A Ray cluster: connecting to it, or starting one here, and whether it has what runs need."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

# Nothing is told to anyone, and a task without a GPU sees none.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import supermask

from ...contract.errors import Problems, RequestError
from ...running.request import request_of
from ...running.search import prepare
from .engine import Order
from .jobs import Job
from .options import RayOptions

# How long a cluster may take to answer before it is called gone, and a machine of it to say what it has.
SECONDS_TO_CONNECT = 15.0
_SECONDS_TO_LOOK = 180.0


def asked_of_ray(options: RayOptions, job: Job) -> dict[str, Any]:
    """What a run asks of Ray, by the names that its tasks have for it."""
    memory = {} if options.memory_gb is None else {"memory": int(options.memory_gb * 2**30)}
    return {"num_cpus": options.cpus or job.config.threads or 1, "num_gpus": options.gpus, **memory}


def connect(order: Order) -> None:
    """Connect to the cluster of an address, or start one on this machine.

    Raises:
        RequestError: nothing answers there.
    """
    address = order.address
    if address not in (None, "auto", "local"):
        check_answers(str(address))
    most = max(order.options.ray.cpus or job.config.threads or 1 for job in order.jobs)
    started = {"num_cpus": max(os.cpu_count() or 1, math.ceil(most)), "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local" if address is None else address, log_to_driver=False, logging_level=logging.ERROR,
            **(started if address in (None, "local") else {}),
        )  # fmt: skip
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, RayError) as error:
        raise RequestError(f"--address {address}: {str(error).strip().splitlines()[0]}") from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray has taken it


def check_answers(address: str) -> None:
    """Check that a cluster answers at an address. To connect where none does, Ray tries for minutes.

    Raises:
        RequestError: none does.
    """
    if not is_reachable(address):
        raise RequestError(
            f"--address {address}: no Ray cluster answers there, expected HOST:PORT as `ray start --head` tells; "
            "without --address one is started on this machine"
        )
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=SECONDS_TO_CONNECT, check=False)
    except subprocess.TimeoutExpired:
        answer = None
    if answer is None or answer.returncode != 0:
        unset = "RAY_AUTH_MODE" not in os.environ
        token = "; a cluster that asks for a token takes RAY_AUTH_MODE=token in this shell too" if unset else ""
        raise RequestError(
            f"--address {address}: what answers there is no Ray cluster of version {ray.__version__}, or does not let "
            f"this command in{token}"
        )


def is_reachable(address: str) -> bool:
    """Whether anything listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return False
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


def check_room(order: Order) -> None:
    """Check that there is a machine in the cluster that each run fits on.

    Raises:
        RequestError: there is none, so that the run would wait for ever.
    """
    problems, options = Problems(), order.options.ray
    if any(job.config.device == "cuda" for job in order.jobs) and not options.gpus:
        problems.add(
            'a run is on cuda and asks for no GPU: gpus = 1, or a part of one, in [engine.ray], or device = "cpu"'
        )
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    words = {"num_cpus": ("CPU", "CPUs"), "num_gpus": ("GPU", "GPUs"), "memory": ("memory", "bytes of memory")}
    for job in order.jobs:
        for asked, number in asked_of_ray(options, job).items():
            name, told = words[asked]
            most = max((machine.get(name, 0) for machine in machines), default=0)
            if number > most:
                problems.add(f"a run asks for {number:g} {told}, and no machine of the cluster has more than {most:g}")
    problems.raise_if_any()


def check_machines(order: Order) -> None:
    """Check that every machine has our packages, the data and the code that runs name, and sees the folder of all runs.

    Raises:
        RequestError: what is missing, and where.
    """
    kinds = {repr([getattr(job.config, key) for key in ("model", "data", "data_dir", "loss", "metric")]): job
             for job in order.jobs}  # fmt: skip
    seen = None
    folder = Path(os.path.abspath(order.place))
    above = next(place for place in (folder, *folder.parents) if place.is_dir())
    if order.options.ray.folder is None:
        seen = above / f".seen-{uuid.uuid4().hex}"
        seen.touch()
    look: Any = ray.remote(_look)
    try:
        found = {}
        for node in (node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = look.options(num_cpus=0, max_retries=1, scheduling_strategy=where)
            arguments = (list(kinds.values()), os.getcwd(), None if seen is None else str(seen))
            found[node["NodeManagerHostname"]] = task.remote(*arguments)
        problems = Problems()
        for host, task in found.items():
            problems.add(*(f"{problem} (on {host})" for problem in _answer(task, order)))
        problems.raise_if_any()
    finally:
        if seen is not None:
            seen.unlink(missing_ok=True)


def _answer(task: Any, order: Order) -> list[str]:
    try:
        problems, versions = ray.get(task, timeout=_SECONDS_TO_LOOK)
    except GetTimeoutError:
        return [f"a machine of the cluster does not answer within {_SECONDS_TO_LOOK:g} s"]
    except RayError as error:
        return [f"a worker cannot begin: {str(error).strip().splitlines()[-1]}"]
    ours = _versions()
    if versions["supermask"] != ours["supermask"]:
        problems.append(f"supermask is {versions['supermask']} there, and {ours['supermask']} here: install the same")
    elif versions != ours:
        there = ", ".join(f"{name} {versions[name]}" for name in ours)
        order.shows.say(f"a machine of the cluster has {there}: its tickets may differ in their last bits")
    return [str(problem) for problem in problems]


def _versions() -> dict[str, str]:
    return {"supermask": supermask.__version__, "torch": str(torch.__version__)}


def _look(jobs: list[Job], folder: str, seen: str | None) -> tuple[list[str], dict[str, str]]:
    """A task: what a machine lacks of what runs need."""
    problems = Problems()
    if seen is not None and not Path(seen).exists():
        problems.add(
            f'{Path(seen).parent} is not seen there: a folder that all machines share, or folder = "/a/folder" in '
            "[engine.ray], where workers work and send back what they make"
        )
        return problems.found, _versions()
    if Path(folder).is_dir():
        os.chdir(folder)
    for job in jobs:
        if job.config.device == "cuda":
            job = replace(job, config=job.config.model_copy(update={"device": "cpu"}))  # this task has no GPU
        problems.attempt(lambda job=job: prepare(request_of(job.config)))  # type: ignore[misc]
    return problems.found, _versions()
