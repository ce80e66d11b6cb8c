"""Data sets as tensors on the device. One file per family; each reads plain arrays from disk."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
