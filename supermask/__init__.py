"""Masks over any PyTorch model: find subnetworks, hold them, learn them, save them, load them.

`__init__.pyi` lists what there is. A name is loaded when it is first used, and PyTorch with it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
