from . import engine as engine
from . import jobs as jobs
from . import local as local
from . import names as names
from . import options as options
