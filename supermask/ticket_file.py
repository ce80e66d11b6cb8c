"""The ticket file: `supermask.tickets.file` under its public path."""

from .tickets.file import MAX_WEIGHTS as MAX_WEIGHTS
from .tickets.file import load as load
from .tickets.file import pack as pack
from .tickets.file import save as save
from .tickets.file import unpack as unpack
from .tickets.file import write_atomically as write_atomically
