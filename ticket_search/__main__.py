"""`python -m ticket_search` is `ticket`."""

from .cli import main

main()
