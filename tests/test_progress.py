"""The live line of a search: a bar on a terminal, lines elsewhere, nothing where it is not shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ticket_search.runs import progress
from ticket_search.runs.progress import Progress

pytestmark = pytest.mark.quick


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def on(terminal: bool, shown: bool = True) -> Progress:
    shows = Progress(shown)
    shows.console = Console(file=io.StringIO(), force_terminal=terminal, width=120, legacy_windows=False)
    return shows


def written(shows: Progress) -> str:
    return shows.console.file.getvalue()


def test_counted_work_has_lines_off_a_terminal(clock):
    with on(terminal=False) as shows, shows.count("scoring", 30) as one_more:
        for _ in range(30):
            clock.now += 1
            one_more()
    lines = written(shows).splitlines()
    assert lines == [f"scoring  {done} of 30  about {30 - done} s left" for done in (10, 20, 30)]


def test_counted_work_has_a_bar_of_its_own_on_a_terminal(clock):
    with on(terminal=True) as shows:
        with shows.count("scoring", 4) as one_more:
            one_more()
            (_, counted) = shows._bar.tasks
            assert (counted.description, counted.completed, counted.total) == ("scoring", 1, 4)
        assert len(shows._bar.tasks) == 1


def test_the_bar_goes_also_where_the_work_fails(clock):
    with on(terminal=True) as shows:
        with pytest.raises(ZeroDivisionError), shows.count("scoring", 4):
            raise ZeroDivisionError
        assert len(shows._bar.tasks) == 1


def test_steps_are_lines_off_a_terminal(clock):
    shows = on(terminal=False)
    shows.total = 100
    with shows:
        shows.label("level 2 of 3")
        shows.numbers({"loss/train": 0.51234, "accuracy/validation": 91.0, "lr": 0.1})
        for step in range(1, 26):
            clock.now += 1
            shows.advance_to(step)
    assert written(shows).splitlines() == [
        f"level 2 of 3  step {step} of 100  loss 0.5123  validation 91" for step in (10, 20)
    ]


def test_in_a_notebook_one_bar_takes_its_own_place(clock, monkeypatch):
    shown: list[str] = []

    class Handle:
        def update(self, page):
            shown[-1] = page.data

    def display(page, display_id):
        assert display_id
        shown.append(page.data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    shows = Progress()
    shows.console = Console(file=io.StringIO(), force_jupyter=True)
    shows.total = 1000
    with shows:
        shows.label("level <2>")
        for step in range(1, 1001):
            clock.now += 0.01
            shows.numbers({"loss/train": 1 / step})
            shows.advance_to(step)
            if step == 500:
                assert 'value="0.4510"' in shown[0] and "about 0:05 left" in shown[0], (
                    "twice a second, not at each step"
                )
    (page,) = shown
    assert 'value="1.0000" max="1"' in page and "level &lt;2&gt;  step 1,000 of 1,000  loss 0.001  0:10<" in page
    assert written(shows) == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_written_where_nothing_is_shown(terminal, clock):
    with on(terminal, shown=False) as shows, shows.count("scoring", 2) as one_more:
        clock.now += 60
        one_more()
        shows.advance_to(1)
        shows.say("a warning")
    assert written(shows) == ""
