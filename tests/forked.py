"""What the process that those of a sweep are forked from has imported: most of what they need, and blank pictures."""

from pictures import leave_blank

from ticket_search.runs import tensorboard
from ticket_search.sweeps import local_engine
from ticket_search.training import conclude, learned_scores, loop

IMPORTED = (conclude, learned_scores, local_engine, loop)
tensorboard.draw = leave_blank
