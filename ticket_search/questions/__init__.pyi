from . import diagnosis as diagnosis
from . import evidence as evidence
from . import records as records
from . import rules as rules
from . import suggestions as suggestions
from . import trials as trials
