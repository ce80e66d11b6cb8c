"""Which weights to keep: how good each is, how many of each tensor, in what shape."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
