"""What the process that those of a sweep are forked from has imported: most of what they need, and blank pictures."""

from pictures import leave_blank
from tensorboard.summary.writer import event_file_writer
from torch.utils import flop_counter

from supermask.choosing import remarks
from supermask.live import learning
from ticket_search.data import digits
from ticket_search.methods import edge_popup, imp
from ticket_search.models import lenet
from ticket_search.runs.loggers import tensorboard
from ticket_search.sweeps.engines import local
from ticket_search.training import at_init, conclude, learned_scores, loop, random_weights

IMPORTED = (
    at_init, conclude, digits, edge_popup, event_file_writer, flop_counter, imp, learned_scores, learning, lenet,
    local, loop, random_weights, remarks,
)  # fmt: skip
tensorboard.draw = leave_blank
