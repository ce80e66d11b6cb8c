"""What the file of a sweep says to engines: `[engine.slurm]` and `[engine.ray]`. Imports no torch.

A file may come from anyone, so that nothing in it is a command, code, or the address of a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field


def _check_word(text: str) -> str:
    # It becomes a line of the script that Slurm runs.
    if not re.fullmatch(r"[A-Za-z0-9_.:,@&|*+-]{1,200}", text):
        raise ValueError("expected a name of Slurm's, without spaces")
    return text


def _check_folder(text: str) -> str:
    if not text.startswith("/") or not text.isprintable():
        raise ValueError("expected the whole path of a folder, as /scratch/runs")
    return text


Word = Annotated[str, AfterValidator(_check_word)]
Folder = Annotated[str, AfterValidator(_check_folder)]


class SlurmOptions(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What each run asks of Slurm.

    minutes: the time limit of a job; a run that is not done by then is saved and queued again.
    notice: the seconds before that at which the run is told.
    requeues: how often a run may reach its limit.
    cpus: of each run; as many as it has threads if not given.
    cluster: submitit's executor. `local` has processes of this machine, `debug` this process.
    """

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    minutes: int = Field(60, ge=1, le=60 * 24 * 366)
    notice: int = Field(90, ge=1)
    requeues: int = Field(20, ge=0)
    memory_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    cpus: int | None = Field(None, ge=1)
    gpus: int = Field(0, ge=0)
    cluster: Literal["slurm", "local", "debug"] = "slurm"


class RayOptions(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What each run asks of Ray.

    cpus: of each run; as many as it has threads if not given.
    gpus: of each run, also a part of one, as 0.25.
    retries: how often a run is tried again that has lost its worker.
    folder: where workers work, if they do not see the folder of all runs; what they make is sent back.
    copy_every: the seconds after which the state of a run is sent back from there.
    """

    cpus: float | None = Field(None, gt=0, allow_inf_nan=False)
    gpus: float = Field(0, ge=0, allow_inf_nan=False)
    memory_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    retries: int = Field(3, ge=0)
    folder: Folder | None = None
    copy_every: float = Field(30, gt=0, allow_inf_nan=False)


class EngineOptions(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The table `[engine]` of the file of a sweep."""

    slurm: SlurmOptions = SlurmOptions()
    ray: RayOptions = RayOptions()

    def gpus(self, engine: str) -> float:
        """The GPUs of each run with an engine; none of the local one, which takes those that are there."""
        return {"slurm": float(self.slurm.gpus), "ray": self.ray.gpus}.get(engine, 0.0)


def fields_at(place: Sequence[Any]) -> list[str]:
    """The keys that there are in a table of [engine], which is given by the keys that lead to it."""
    table: type[pydantic.BaseModel] = EngineOptions
    for key in place[1:]:
        found = table.model_fields[key].annotation
        assert isinstance(found, type) and issubclass(found, pydantic.BaseModel), "only tables hold keys"
        table = found
    return list(table.model_fields)
