"""Weights: drawn from a seed, loaded into a model, and networks known by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
