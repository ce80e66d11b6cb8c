"""The processes that train one network together: which of them this is, and what they tell each other.

`torchrun --nproc-per-node N -m ticket_search search ...` starts them. Each is a rank of a group of PyTorch's, carries
out the same search, and takes its own rows of every batch. The first one (rank 0) reads and writes the run's folder and
prints. Imports torch when there is more than one.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..contract.errors import RequestError, RunError, some_of

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

# What PyTorch and its backends say where a process of the group is no more, or cannot be reached.
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket", "process group")
# How long a rank that has failed waits for the others to fail too, and one that leaves for those that leave before it.
_SECONDS_TO_LEAVE = 5.0
# How long ranks go on without asking each other, and for how many steps at most.
_SECONDS_BETWEEN, _MOST_STEPS = 0.5, 64
# What says that parameters get gradients in one step and not in another.
_CHANGING = "finished reduction in the prior iteration"


@dataclass(frozen=True)
class Ranks:
    """A process among those that work together: its number, how many there are, and the same on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that reads, writes and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1


ALONE = Ranks()
# What is noted on an error that the first rank has met too, which tells of it.
TOLD = "the first rank tells of it"
_active: list[Ranks] = []
# How often this process has worked with others; and whether it has left them in the middle.
_meetings: list[Ranks] = []
_broken: list[bool] = []


def launched() -> Ranks:
    """What this process is among those that `torchrun` has started, by what it says in the environment.

    Raises:
        RequestError: what is there are no such numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    words = [os.environ.get(name) for name in names]
    if words[0] is None or words[1] is None or "MASTER_ADDR" not in os.environ:
        return ALONE
    wrong = [f"{name}={word}" for name, word in zip(names, words, strict=True) if word and not word.isdecimal()]
    if wrong:
        raise RequestError(f"the environment has {', '.join(wrong)}: expected whole numbers, as torchrun sets them")
    rank, world = int(words[0]), int(words[1])
    if world < 1 or rank >= world:
        raise RequestError(f"the environment has RANK={rank} and WORLD_SIZE={world}: expected a rank below the size")
    return Ranks(rank, world, int(words[2] or rank), int(words[3] or world))


def now() -> Ranks:
    """Those that work together at present: `ALONE` outside of `together`."""
    return _active[-1] if _active else ALONE


@contextlib.contextmanager
def together(device: str = "auto") -> Iterator[Ranks]:
    """Within it this process works with the others that were started with it; alone where there are none.

    The group lasts until the process ends, so that it can be entered again. On ranks other than the first our own
    warnings are not shown: the first shows the same.

    Args:
        device: what the network is trained on; of GPUs each process takes the one of its number on its machine.

    Raises:
        RequestError: fewer GPUs than processes.
        RunError: the others cannot be reached, or were left before.
    """
    ranks = launched()
    if not ranks.several or _active:
        yield now()
        return
    _join(ranks, device)
    _active.append(ranks)
    _meetings.append(ranks)
    try:
        with warnings.catch_warnings():
            if not ranks.first:
                warnings.simplefilter("ignore", UserWarning)
            yield ranks
        _tell_end(ranks, None)
    except BaseException as error:
        _tell_end(ranks, error)
        if isinstance(error, RuntimeError) and not isinstance(error, RunError) and is_lost(error):
            raise RunError(describe_lost(error)) from error
        raise
    finally:
        _active.pop()


def _tell_end(ranks: Ranks, error: BaseException | None) -> None:
    """Tell the others how this rank has left, and look whether all have.

    A rank that leaves by an error of its own while the others go on takes the group with it: they would wait for it, or
    take what it says next for an answer to something else.
    """
    from torch import distributed

    keys = [f"supermask/{len(_meetings)}/{rank}" for rank in range(ranks.world)]
    try:
        store = distributed.distributed_c10d._get_default_store()
        store.set(keys[ranks.rank], "" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            store.wait(keys, datetime.timedelta(seconds=_SECONDS_TO_LEAVE))
            if not ranks.first and store.get(keys[0]).decode() == f"{type(error).__name__}: {error}":
                error.add_note(TOLD)
    except (RuntimeError, ValueError):  # they go on, or are gone
        if error is not None:
            _broken.append(True)
            _leave()


def _join(ranks: Ranks, device: str) -> None:
    import torch
    from torch import distributed

    if _broken:
        raise RunError(
            "this process has left the other ranks in the middle of a search, by an error that they did not have: "
            "start all of them anew"
        )
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0
    if gpus:
        if ranks.local_rank >= gpus:
            raise RequestError(
                f"{ranks.local_world} processes on this machine, which has {gpus} GPUs that may be used: expected one "
                "process a GPU, --nproc-per-node, or --device cpu"
            )
        torch.cuda.set_device(ranks.local_rank)
    if distributed.is_initialized():
        if "gloo" not in str(distributed.get_backend_config()):
            raise RequestError(
                "the process group that is open already has no backend for the CPU: expected "
                'init_process_group("cpu:gloo,cuda:nccl")'
            )
        return
    try:
        # What is told goes by the CPU, and what is computed stays where it is.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        raise RunError(f"the other ranks cannot be reached by {place}: {_line_of(error)}") from error
    atexit.register(_leave_in_turn)


def _leave_in_turn() -> None:
    """Leave the group when the ranks above this one have left it, the first one last.

    So no connection is closed from both sides at the same time, and the first one's store is there for all who use it.
    """
    from torch import distributed

    if not distributed.is_initialized():
        return
    rank, store = distributed.get_rank(), distributed.distributed_c10d._get_default_store()
    keys = [f"supermask/left/{each}" for each in range(distributed.get_world_size())]
    # Of those that are gone without a word nothing is heard.
    with contextlib.suppress(RuntimeError):
        store.wait(keys[rank + 1 :], datetime.timedelta(seconds=_SECONDS_TO_LEAVE))
    _leave()
    with contextlib.suppress(RuntimeError):
        store.set(keys[rank], "")


def _leave() -> None:
    from torch import distributed

    # Where another process is gone already there is nothing to take leave of.
    with contextlib.suppress(RuntimeError):
        distributed.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process of the group cannot be reached any more."""
    from torch import distributed

    if isinstance(error, distributed.DistError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in told for word in (*_LOST, _CHANGING))


def describe_lost(error: BaseException) -> str:
    """The sentence about processes that have been lost, or that do not do the same."""
    ranks = now() if _active else launched()
    if _CHANGING in str(error).lower():
        return (
            "some parameters of the network get gradients in one step and none in another, which several ranks cannot "
            "train together: expected a network that uses the same parameters in every step, or one process"
        )
    return (
        f"another of the {ranks.world} ranks has ended or cannot be reached ({_line_of(error)}): what it printed says "
        "why. The run is as it was when it was last saved; the same command goes on from there, with as many ranks or "
        "others"
    )


def _line_of(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")[:200]


def tell(value: Value) -> Value:
    """What the first rank gives, on all of them."""
    if not now().several:
        return value
    from torch import distributed

    told = [value if now().first else None]
    distributed.broadcast_object_list(told, src=0)
    return told[0]  # type: ignore[return-value]


def gather(value: Value) -> list[Value]:
    """What each rank gives, in their order, on all of them."""
    if not now().several:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * now().world
    distributed.all_gather_object(found, value)
    return found


def first(work: Callable[[], Value]) -> Value:
    """What `work()` returns on the first rank, on all of them. The others do not call it.

    Raises:
        RequestError: as it does there, on all ranks.
        RunError: on the others where it raises anything else.
    """
    if not now().several:
        return work()
    raised: Exception | None = None
    found: Any = None
    if now().first:
        try:
            found = work()
        except Exception as error:
            raised = error
    # Of any exception its text: not every one comes out of another process as it went in.
    problems = raised.problems if isinstance(raised, RequestError) else None
    found, problems, told = tell((found, problems, None if raised is None else _in_words(raised)))
    if raised is not None:
        raise raised
    if problems is not None:
        raise RequestError(problems)
    if told is not None:
        raise RunError(told)
    return found  # type: ignore[no-any-return]


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"


def wait() -> None:
    """Go on when all ranks have come here."""
    gather(None)


def add(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in its place."""
    if now().several:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def most(numbers: Sequence[int]) -> list[int]:
    """The largest of each number over all ranks. Cheap enough for every few steps of training: no device is asked."""
    if not now().several:
        return list(numbers)
    import torch
    from torch import distributed

    told = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return [int(number) for number in told.tolist()]


class Agreement:
    """What all ranks do after the same step: stop because one has heard a signal, or save because the first wants to.

    To ask after every step would take as long as a short step. They ask after so many that it is about twice a second.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self.status: int | None = None
        self.saves = False
        self._asked, self._steps, self._until = time.monotonic(), 0, 1

    def ask(self, saves: bool, at_once: bool = False) -> bool:
        """Count a step, and ask all ranks where it is time to.

        Args:
            saves: whether this rank wants a state saved.
            at_once: whether it is time to, whatever the number of steps.

        Returns:
            Whether they were asked: `status` is then the exit status with which to stop, or None.
        """
        self.saves = False
        self._steps += 1
        if not at_once and self._steps < self._until:
            return False
        pace = (time.monotonic() - self._asked) / self._steps
        steps = max(1, min(_MOST_STEPS, int(_SECONDS_BETWEEN / max(pace, 1e-9))))
        status, wanted, self._until = most([self.heard or 0, int(saves), steps if now().first else 0])
        self.status, self.saves = status or None, bool(wanted)
        self._asked, self._steps = time.monotonic(), 0
        return True


def send_buffers(buffers: Sequence[Tensor]) -> None:
    """Give every rank the buffers of the first one, as the running statistics of norms, in place."""
    if now().several:
        from torch import distributed

        for buffer in buffers:
            distributed.broadcast(buffer, src=0)


def check_same(what: str, value: Mapping[str, Any], error: type[Exception] = RunError) -> None:
    """Check that all ranks have the same.

    Args:
        what: that is, for the sentence.
        value: by name, compared one by one.
        error: what is raised where they differ.

    Raises:
        error: with the names of what differs, the ranks, and what these have.
    """
    found = gather(dict(value))
    told = []
    for name in dict.fromkeys(key for each in found for key in each):
        values = [repr(each.get(name, "nothing")) for each in found]
        others = [rank for rank, each in enumerate(values) if each != values[0]]
        if others:
            told.append(f"{name}: rank 0 has {values[0][:80]}, rank {others[0]} has {values[others[0]][:80]}")
    if told:
        raise error(f"the ranks do not have the same {what}: {some_of(told, 3)}")
