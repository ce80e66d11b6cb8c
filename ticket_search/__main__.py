"""`python -m ticket_search` is `ticket`."""

from __future__ import annotations

from .contract import stops


def main() -> None:
    """The command line. Signals are answered with one line from here on: what it imports takes seconds."""
    stops.end_on_signals()
    from .cli import main as command

    command()


if __name__ == "__main__":
    main()
