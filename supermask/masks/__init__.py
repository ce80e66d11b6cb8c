"""What may carry a mask, masks themselves, and random numbers that depend on a seed and a name only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
