from . import allocation as allocation
from . import coupling as coupling
from . import gradients as gradients
from . import granularity as granularity
from . import pruning as pruning
from . import schedules as schedules
from . import scores as scores
