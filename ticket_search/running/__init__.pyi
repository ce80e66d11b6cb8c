from . import controls as controls
from . import plan as plan
from . import read_config as read_config
from . import request as request
from . import search as search
from . import small_dense as small_dense
from . import ticket_code as ticket_code
from . import train as train
