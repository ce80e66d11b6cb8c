"""The live line of a search: a bar on a terminal, lines elsewhere, nothing where it is not shown; what is left."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from ticket_search.runs import progress
from ticket_search.runs.progress import Pace, Progress, clock, fit_line, told_left
from ticket_search.sweeps.progress import CONTROLS, RUNNING, Board, SweepProgress, Work

pytestmark = pytest.mark.quick
WIDTHS = [40, 60, 80, 200]


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch):
    watch = Clock()
    monkeypatch.setattr(progress, "time", watch)
    monkeypatch.setattr("ticket_search.sweeps.progress.time", watch)
    return watch


def screen(terminal: bool, width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, legacy_windows=False)


def on(terminal: bool, shown: bool = True, width: int = 120) -> Progress:
    shows = Progress(shown)
    shows.console = screen(terminal, width)
    return shows


def written(shows: Progress | SweepProgress) -> str:
    return shows.console.file.getvalue()


def drawn(shows: Progress | SweepProgress) -> list[str]:
    """The lines of the bar as they stand now."""
    with shows.console.capture() as caught:
        shows.console.print(shows._render())
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", caught.get()).splitlines()]


# --- the time left


def test_the_time_left_is_that_of_the_pace():
    pace = Pace()
    assert pace.left(0.0, 10.0) is None
    assert pace.left(0.25, 20.0) == pytest.approx(30.0)
    assert pace.left(0.5, 50.0) == pytest.approx(40.0)
    assert pace.left(1.0, 90.0) == 0.0
    assert pace.elapsed(90.0) == 80.0


def test_before_there_is_a_pace_what_was_announced_counts():
    pace = Pace(announced=100.0)
    assert pace.left(0.0, 0.0) == 100.0
    assert pace.left(0.0, 30.0) == 70.0
    assert pace.left(0.0, 300.0) == 0.0, "later than announced, and nothing is done: no less than nothing is left"
    told = [Pace(announced=100.0) for _ in range(3)]
    for each in told:
        each.left(0.0, 0.0)
    # After 1 % in 2 s the pace says 198 s and the announcement 98: a fifth of the way from one to the other.
    assert told[0].left(0.01, 2.0) == pytest.approx(0.2 * 198 + 0.8 * 98)
    assert told[1].left(0.05, 10.0) == pytest.approx(190.0), "from 5 % on only the pace counts"


def test_work_that_is_taken_up_again_begins_with_what_is_done():
    pace = Pace(announced=100.0)
    assert pace.left(0.5, 0.0) == 50.0
    assert pace.left(0.75, 10.0) == pytest.approx(10.0), "a quarter in 10 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (725, "12:05"), (3600, "1:00:00"), (11045, "3:04:05"), (97200, "1 d 3 h")],
)  # fmt: skip
def test_a_clock(seconds, text):
    assert clock(seconds) == text
    assert told_left(seconds) == f"{text} left"


# --- a line of the bar, at any width


@pytest.mark.parametrize("width", range(12, 201, 7))
@pytest.mark.parametrize("label", ["", "imp  level-04", "a-very-long-method-of-another-package  level-12"])
@pytest.mark.parametrize("numbers", ["", "loss 0.03487  train 99.62  validation 97.22"])
def test_a_line_fits_and_says_what_is_left(width, label, numbers):
    line = fit_line(width, label, 0.42, "1:02:03 left", numbers).plain
    assert cell_len(line) <= width
    assert "1:02:03 left" in line, "whatever else has no room"
    if width >= 40:
        assert " 42 %" in line and "━━━━" in line
    if width >= 40 and len(label) < 15:
        assert label in line
    if numbers and width >= 120:
        assert numbers in line
    assert numbers in line or not numbers or not any(word in line for word in ("loss", "train", "validation"))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_search_shows_what_is_left_at_any_width(width, watch):
    shows = on(terminal=True, width=width)
    shows.expect(100)
    shows.label("imp  level-04")
    shows.numbers({"loss/train": 0.51234, "accuracy/train": 93.1, "accuracy/validation": 91.0})
    for step in range(1, 41):
        watch.now += 1
        shows.advance_to(step)
        (line,) = drawn(shows)
        assert cell_len(line) <= width and " left" in line and f"{step} %" in line
    assert "1:0" in line or "0:5" in line, "forty steps took about forty seconds, and sixty are left"


def test_the_bar_ends_with_what_it_took(watch):
    shows = on(terminal=True)
    shows.expect(4)
    for step in range(1, 5):
        shows.advance_to(step)
        watch.now += 10
    assert drawn(shows)[0].endswith("100 % 0:40")


def test_several_runs_one_after_another_have_a_bar_each(watch):
    shows = on(terminal=True)
    for steps in (4, 8):
        shows.expect(steps)
        assert drawn(shows) == []
        shows.advance_to(1)
        assert f" {100 / steps:.0f} % " in drawn(shows)[0]


# --- off a terminal


def test_steps_are_lines_off_a_terminal(watch):
    shows = on(terminal=False)
    shows.expect(1000)
    shows.label("level 2 of 3")
    shows.numbers({"loss/train": 0.51234, "accuracy/validation": 91.0, "lr": 0.1})
    for step in range(1, 26):
        shows.advance_to(step * 10)
        watch.now += 1
        if step % 10 == 0:
            shows.tell()
    lines = written(shows).splitlines()
    assert [line.rpartition("  about ")[0] for line in lines] == [
        f"level 2 of 3  step {step} of 1,000  loss 0.5123  validation 91" for step in (100, 200)
    ]
    assert lines[1].endswith("  about 1:24 left") or lines[1].endswith("  about 1:23 left")


def test_a_line_comes_again_and_again_whatever_is_waited_for(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.02)
    with on(terminal=False) as shows:
        shows.label("loading PyTorch")
        until = time.monotonic() + 5
        while written(shows).count("loading PyTorch  0:00 so far") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert written(shows).count("loading PyTorch  0:00 so far") >= 3
    number = len(written(shows).splitlines())
    time.sleep(0.1)
    assert len(written(shows).splitlines()) <= number + 1, "and no more after the end"
    assert progress._SECONDS_BETWEEN_LINES < 10


# --- work that is no step


def test_counted_work_has_lines_off_a_terminal(watch):
    shows = on(terminal=False)
    with shows.count("scoring", 30) as one_more:
        for number in range(1, 31):
            watch.now += 1
            one_more()
            if number % 10 == 0:
                shows.tell()
    assert written(shows).splitlines() == [
        f"scoring  {done} of 30  about 0:{30 - done:02} left" for done in (10, 20, 30)
    ]


def test_in_a_notebook_one_bar_takes_its_own_place(watch, monkeypatch):
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
            watch.now += 0.01
            shows.numbers({"loss/train": 1 / step})
            shows.advance_to(step)
            if step == 500:
                assert 'value="0.4510"' in shown[0] and "about 0:05 left" in shown[0], (
                    "twice a second, not at each step"
                )
    (page,) = shown
    assert 'value="1.0000" max="1"' in page and "level &lt;2&gt;  step 1,000 of 1,000  loss 0.001  0:10<" in page
    assert written(shows) == ""


def test_counted_work_has_a_bar_of_its_own_on_a_terminal(watch):
    shows = on(terminal=True, width=60)
    assert drawn(shows) == []
    with shows.count("scoring", 4) as one_more:
        one_more()
        watch.now += 5
        (line,) = drawn(shows)
        assert line.startswith("scoring ━") and line.endswith(" 25 % 0:15 left")
    assert drawn(shows) == []


def test_the_bar_goes_also_where_the_work_fails():
    shows = on(terminal=True)
    with pytest.raises(ZeroDivisionError), shows.count("scoring", 4):
        raise ZeroDivisionError
    assert drawn(shows) == []


def test_it_may_be_entered_inside_itself(watch):
    with on(terminal=True) as shows:
        live = shows._live
        with shows:
            assert shows._live is live
        assert shows._live is live and live is not None
    assert shows._live is None


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_written_where_nothing_is_shown(terminal, watch):
    with on(terminal, shown=False) as shows, shows.count("scoring", 2) as one_more:
        watch.now += 60
        one_more()
        shows.advance_to(1)
        shows.say("a warning")
    assert written(shows) == ""


# --- a sweep


def shown_sweep(watch: Clock, width: int, terminal: bool) -> tuple[SweepProgress, Board]:
    board = Board(3)
    names = [f"edge-popup-wide-resnet-28-10-fashion-mnist-d0.5-s{seed}" for seed in range(3)]
    work = [Work(60.0, 20.0), Work(60.0, 20.0), Work(40.0)]
    shows = SweepProgress(names, [100, 100, 50], board, True, work, announced=200.0)
    shows.console = screen(terminal, width)
    shows._pace.left(0.0, watch.now)
    return shows, board


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sweep_shows_what_is_left_at_any_width(width, watch):
    shows, board = shown_sweep(watch, width, terminal=True)
    assert drawn(shows)[-1].endswith("0 % 3:20 left")
    board.enter(0, RUNNING)
    board.move(0, 50)
    board.measure(0, 91.25)
    board.enter(1, CONTROLS)
    watch.now += 45
    # Of 200 s half of the first run is done and the second but for its controls.
    lines = drawn(shows)
    assert lines[-1].endswith("45 % 0:55 left")
    assert all(cell_len(line) <= width for line in lines) and len(lines) == 3
    if width >= 80:
        assert "50 of 100" in lines[0] and "controls" in lines[1]


def test_a_sweep_has_lines_off_a_terminal(watch):
    shows, board = shown_sweep(watch, 80, terminal=False)
    board.enter(0, RUNNING)
    board.move(0, 50)
    watch.now += 30
    shows.tell()
    shows.ended(0, "finished", "test 91.25 %")
    watch.now += 30
    shows.tell()
    assert written(shows).splitlines() == [
        "15 %  1 running, 2 waiting  about 2:50 left",
        "1 of 3  finished  edge-popup-wide-resnet-28-10-fashion-mnist-d0.5-s0  test 91.25 %",
        "40 %  1 finished, 0 running, 2 waiting  about 1:30 left",
    ]
