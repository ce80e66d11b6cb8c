"""Questions about a finished run: why it is as it is, and what to try next."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
