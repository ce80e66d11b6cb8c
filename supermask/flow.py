"""What still lies on a path from input to output: `supermask.shrinking.flow` under its public path."""

from .shrinking.flow import Flow as Flow
from .shrinking.flow import LayerFlow as LayerFlow
from .shrinking.flow import describe as describe
from .shrinking.flow import flow as flow
