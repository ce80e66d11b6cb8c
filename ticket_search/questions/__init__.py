"""Questions about a finished run that are answered by more trainings: is its training stable to the noise of SGD?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
