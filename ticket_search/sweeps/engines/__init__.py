"""What carries out the runs of a sweep: processes of this machine, jobs of Slurm, tasks of Ray."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
