"""Masks over any PyTorch model: find subnetworks, hold them, learn them, save them, load them."""

from . import foreign as foreign
from .allocation import by_glob as by_glob
from .allocation import by_rate as by_rate
from .allocation import with_floor as with_floor
from .differences import Difference as Difference
from .edge_popup import learn as learn
from .fitting import Fit as Fit
from .gradients import Evidence as Evidence
from .granularity import NM as NM
from .granularity import Block as Block
from .granularity import Channel as Channel
from .granularity import Filter as Filter
from .granularity import Weight as Weight
from .inits import Draw as Draw
from .inits import draw as draw
from .inits import fingerprint as fingerprint
from .inits import initialize as initialize
from .live import bake as bake
from .live import check as check
from .live import detach as detach
from .live import hold as hold
from .live import masks_of as masks_of
from .masks import Masks as Masks
from .pruning import prune as prune
from .schedules import densities_over as densities_over
from .scores import Movement as Movement
from .sparse import Speedup as Speedup
from .sparse import accelerate as accelerate
from .sparse import speedup_of as speedup_of
from .targets import Targets as Targets
from .targets import find_targets as find_targets
from .ticket import State as State
from .ticket import Ticket as Ticket
from .ticket import TicketError as TicketError
from .ticket import make_state as make_state
from .ticket_file import load as load
from .ticket_file import pack as pack
from .ticket_file import save as save
from .ticket_file import unpack as unpack

__version__ = "0.1.0"
