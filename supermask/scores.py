"""How good each weight is: `supermask.choosing.scores` under its public path."""

from .choosing.scores import GRASP_TEMPERATURE as GRASP_TEMPERATURE
from .choosing.scores import ROUNDS as ROUNDS
from .choosing.scores import SCORES as SCORES
from .choosing.scores import Movement as Movement
from .choosing.scores import Score as Score
from .choosing.scores import Scores as Scores
from .choosing.scores import bn_scale as bn_scale
from .choosing.scores import find_score as find_score
from .choosing.scores import grasp as grasp
from .choosing.scores import l2 as l2
from .choosing.scores import magnitude as magnitude
from .choosing.scores import movement as movement
from .choosing.scores import outputs_of as outputs_of
from .choosing.scores import random as random
from .choosing.scores import snip as snip
from .choosing.scores import synflow as synflow
from .choosing.scores import taylor as taylor
