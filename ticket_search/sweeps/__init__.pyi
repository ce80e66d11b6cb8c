from . import choice as choice
from . import file as file
from . import local_engine as local_engine
from . import progress as progress
from . import study as study
from . import sweep as sweep
from . import trials as trials
