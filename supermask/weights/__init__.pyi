from . import architectures as architectures
from . import fitting as fitting
from . import inits as inits
from . import plain as plain
