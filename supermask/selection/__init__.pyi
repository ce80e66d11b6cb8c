from . import gpu as gpu
from . import top_k as top_k
from . import tracking as tracking
