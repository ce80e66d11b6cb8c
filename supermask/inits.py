"""Seeded weight initializations: `supermask.weights.inits` under its public path."""

from .masks.random_numbers import normal as normal
from .masks.random_numbers import permutation as permutation
from .masks.random_numbers import random_words as random_words
from .masks.random_numbers import signs as signs
from .masks.random_numbers import uniform as uniform
from .weights.inits import INITS as INITS
from .weights.inits import RELU_GAIN as RELU_GAIN
from .weights.inits import WEIGHT_INITS as WEIGHT_INITS
from .weights.inits import Draw as Draw
from .weights.inits import density_scale as density_scale
from .weights.inits import draw as draw
from .weights.inits import fingerprint as fingerprint
from .weights.inits import initialize as initialize
