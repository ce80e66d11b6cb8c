"""The k largest of many numbers, exactly: from nothing, and again and again."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
