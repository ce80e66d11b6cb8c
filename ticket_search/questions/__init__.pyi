from . import barrier_plot as barrier_plot
from . import barriers as barriers
from . import children as children
from . import connectivity as connectivity
from . import path as path
from . import question as question
