"""Files of other programs: `supermask.tickets.foreign` under its public path."""

from .tickets.foreign import from_hidden_networks as from_hidden_networks
from .tickets.foreign import from_masks as from_masks
from .tickets.foreign import from_open_lth as from_open_lth
from .tickets.foreign import from_torch_prune as from_torch_prune
from .tickets.foreign import from_zeros as from_zeros
from .tickets.foreign import load as load
from .tickets.foreign import read_file as read_file
from .tickets.foreign import state_dict_in as state_dict_in
from .tickets.foreign import to_hidden_networks as to_hidden_networks
from .tickets.foreign import to_open_lth as to_open_lth
from .tickets.foreign import to_torch_prune as to_torch_prune
