"""Masks over any PyTorch model: find subnetworks, hold them, learn them, save them, load them."""

from .edge_popup import learn as learn
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
