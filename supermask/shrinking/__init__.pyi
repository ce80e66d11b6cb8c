from . import activity as activity
from . import compaction as compaction
from . import flow as flow
from . import removal as removal
from . import slicing as slicing
from . import trials as trials
from . import verification as verification
