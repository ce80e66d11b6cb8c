from . import accelerate as accelerate
from . import layers as layers
from . import timing as timing
