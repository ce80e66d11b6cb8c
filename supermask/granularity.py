"""In what shape weights are kept: `supermask.choosing.granularity` under its public path."""

from .choosing.granularity import GRANULARITIES as GRANULARITIES
from .choosing.granularity import NM as NM
from .choosing.granularity import Block as Block
from .choosing.granularity import Channel as Channel
from .choosing.granularity import Filter as Filter
from .choosing.granularity import Granularity as Granularity
from .choosing.granularity import GroupChooser as GroupChooser
from .choosing.granularity import Units as Units
from .choosing.granularity import Weight as Weight
from .choosing.granularity import find_granularity as find_granularity
