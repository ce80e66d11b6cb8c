"""`python -m ticket_search` is `ticket`."""

from __future__ import annotations

import sys

from .contract import stops


def main() -> None:
    """The command line. Signals are answered with one line from here on: what it imports takes seconds."""
    stops.end_on_signals()
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt as stop:  # between the lines that answer it with more
        sys.stderr.write("\nstopped\n")
        sys.exit(getattr(stop, "status", stops.STOPPED))
    finally:
        stops.end_no_more()


if __name__ == "__main__":
    main()
