"""Many runs: the file that lists them, the processes that carry them out, and studies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
