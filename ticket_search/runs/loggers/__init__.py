"""Where a run's numbers go: its event files always, and the loggers that it is asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
