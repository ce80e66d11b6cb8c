from . import journal as journal
from . import logger as logger
from . import mlflow as mlflow
from . import recipients as recipients
from . import tensorboard as tensorboard
from . import wandb as wandb
