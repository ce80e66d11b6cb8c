"""The flags that every record of a run names, whatever their values: those of version 0.1.

Tickets and `config.toml` of that version name all flags that are set: their bytes depend on this list, and nothing is
ever added to it. A flag that is newer is recorded only where its value is not its default. So the tickets of runs that
do not use it keep their bytes, and a folder that is older, which does not name it, says that it has its default there.
For the same reason the default of a newer flag is never changed.
"""

from __future__ import annotations

_SHARED = (
    "method model model_args activation weights data data_dir train_size density epochs batch_size optimizer lr "
    "momentum nesterov weight_decay schedule milestones drop warmup image_size workers crop flip loss metric "
    "label_smoothing clip accumulate precision channels_last compile init evaluate_every include exclude seed "
    "init_seed order_seed mask_seed split_seed device threads dtype"
)
_OF_METHODS = {
    "dense": "",
    "edge-popup": "granularity scaled allocation train_norms",
    "filters": "densities score greedy rounds scan tolerance retrain_epochs retrain_lr",
    "gradual": "granularity allocation floor prune_from prune_until prune_every fall",
    "grasp": "granularity allocation floor rounds samples_per_class",
    "imp": "granularity allocation fraction conv_fraction output_fraction rewind rewind_optimizer data_order",
    "magnitude-at-init": "granularity allocation floor rounds",
    "one-shot": "granularity allocation floor score samples_per_class then rewind retrain_epochs retrain_lr",
    "random": "granularity allocation floor rounds",
    "snip": "granularity allocation floor rounds samples_per_class",
    "synflow": "granularity allocation floor rounds",
    "train": "ticket found_by state control whole",
}


def always_recorded(method: str) -> frozenset[str]:
    """The names of the flags that a record of a method's run always has, if they are set."""
    return frozenset(f"{_SHARED} {_OF_METHODS.get(method, '')}".split())
