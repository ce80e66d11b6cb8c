"""Search for subnetworks: `search`, `resume` and what they return.

`__init__.pyi` lists what there is. A name is loaded when it is first used: importing this does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
