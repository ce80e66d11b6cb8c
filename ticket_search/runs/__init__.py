"""A run: its folder, its network and data, what it logs, and the state that it resumes from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
