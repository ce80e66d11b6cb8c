from . import agreement as agreement
from . import signs as signs
