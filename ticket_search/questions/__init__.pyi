from . import activations as activations
from . import agreement as agreement
from . import signs as signs
from . import unit_plot as unit_plot
