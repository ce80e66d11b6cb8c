"""MLflow: a search is a run of the experiment that MLFLOW_EXPERIMENT_NAME names, at MLFLOW_TRACKING_URI."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .logger import Logger, numbers_of

if TYPE_CHECKING:
    from .tensorboard import Histogram

# What a server takes at once, and the longest value of a parameter.
_METRICS, _PARAMETERS, _LONGEST = 1000, 100, 6000


def begin(name: str, config: Mapping[str, Any], known: str) -> Logger:
    """A new run of MLflow with a configuration as its parameters, or the one that is known."""
    # Not by the functions of the module: those set the active run and experiment of the caller's own program.
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    if known:
        client.update_run(known, "RUNNING")
        return MlflowLogger(client, known)
    found = client.create_run(_find_experiment(client), run_name=name).info.run_id
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    parameters = [Param(key, value[:_LONGEST]) for key, value in words.items()]
    for start in range(0, len(parameters), _PARAMETERS):
        client.log_batch(found, params=parameters[start : start + _PARAMETERS])
    return MlflowLogger(client, found)


def _find_experiment(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return number
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        # Another process has made it between the two.
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)


class MlflowLogger:
    """A run of MLflow. It has no histograms."""

    def __init__(self, client: Any, id: str) -> None:
        self.client, self.id = client, id

    def log(self, row: int, step: int, values: Mapping[str, float]) -> None:
        """Log numbers at a step, by tag."""
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        metrics = [Metric(tag, value, now, step) for tag, value in values.items()]
        for start in range(0, len(metrics), _METRICS):
            self.client.log_batch(self.id, metrics[start : start + _METRICS])

    def log_histograms(self, row: int, step: int, values: Mapping[str, Histogram]) -> None:
        """Nothing: MLflow has no histograms."""

    def log_pictures(self, row: int, step: int, values: Mapping[str, bytes]) -> None:
        """Log PNG files at a step, by tag."""
        from PIL import Image

        for tag, png in values.items():
            self.client.log_image(self.id, Image.open(io.BytesIO(png)), key=tag, step=step)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Log the numbers of the summary as metrics and the whole as `summary.json`, and set the run's status."""
        if summary:
            self.log(0, 0, numbers_of(summary))
            self.client.log_dict(self.id, dict(summary), "summary.json")
        self.client.set_terminated(self.id, "KILLED" if summary is None else "FINISHED")
