from . import experiment as experiment
from . import first_layer as first_layer
from . import folders as folders
from . import names as names
from . import progress as progress
from . import rehearsal as rehearsal
from . import run as run
from . import tensorboard as tensorboard
