"""Networks: plain modules, one family a file. Their names are declared in the entry-point group `supermask.models`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
