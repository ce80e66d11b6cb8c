"""What ends a process before its work is done: signals, and the time that it was given. Imports nothing of ours.

A run in progress takes the signals over: it finishes the step that it is at and saves its state. Before and after that
they end the command with one line. SIGUSR1, which Slurm sends before the time of a job is over (`--signal=USR1@60`),
does the same as Ctrl-C; only the exit status tells a job's script to queue the job again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Exit statuses: 128 + 2, as shells tell of Ctrl-C; and that of a failure which passes (EX_TEMPFAIL), to be tried again.
STOPPED, AGAIN = 130, 75
# Windows has neither of these two signals.
HANGUP: Any = getattr(signal, "SIGHUP", None)
REQUEUE: Any = getattr(signal, "SIGUSR1", None)
SIGNALS: tuple[signal.Signals, ...] = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP, REQUEUE)))


class Stopped(KeyboardInterrupt):
    """A signal came. `status` is what the process is to exit with."""

    def __init__(self, message: str = "stopped", status: int = STOPPED) -> None:
        self.status = status
        super().__init__(message)


def status_of(number: int) -> int:
    """The exit status of a process that a signal has stopped."""
    return AGAIN if number == REQUEUE else STOPPED


@contextmanager
def stopping_on_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the exit status when a signal comes; a second one does what it would do without us.

    What is ignored stays so, as a hangup under `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop(status_of(number))
        signal.signal(number, previous[signal.Signals(number)] or signal.SIG_DFL)

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    try:
        for number in taken:
            signal.signal(number, ask_to_stop)
        yield
    finally:
        for number in taken:
            if (handler := previous[number]) is not None:  # one that was not set from Python cannot be put back
                signal.signal(number, handler)


def end_on_signals() -> None:
    """From now on a signal ends this process, which is a command, by an exception that its last lines tell of."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def end_no_more() -> None:
    """From now on no signal changes how this process ends: all is done, and Python takes apart what it has made."""
    for number in SIGNALS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    status = status_of(number)
    if _is_importing(frame):
        # An exception out of the import of a compiled module comes out as another one, and nothing is to be saved yet.
        os.write(2, b"\nstopped; nothing was written\n")
        os._exit(status)
    raise Stopped(status=status)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def stop_after(minutes: float) -> None:
    """Stop this process as SIGUSR1 does when its time is over, if anything here listens to that signal then."""
    number = REQUEUE or signal.SIGTERM

    def ask() -> None:
        # What a signal does by itself is to kill the process without a word.
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            os.kill(os.getpid(), number)

    timer = threading.Timer(60 * minutes, ask)
    timer.daemon = True
    timer.start()
