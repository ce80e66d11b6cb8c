"""From a request to a finished run: searches, trainings of tickets, and controls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
