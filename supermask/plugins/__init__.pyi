from . import entry_points as entry_points
from . import other_names as other_names
