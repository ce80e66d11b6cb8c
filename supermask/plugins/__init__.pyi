from . import entry_points as entry_points
