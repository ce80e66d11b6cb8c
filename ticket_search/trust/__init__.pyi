from . import key as key
from . import mark as mark
