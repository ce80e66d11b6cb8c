"""Words of the field, and of other tools, for what has another name here. Imports no torch.

An unknown word that stands in one of these tables is answered by the name that is meant; any other by the nearest name.
"""

from __future__ import annotations

from collections.abc import Mapping

_PRUNING = ("one-shot", "gradual", "imp")
METHODS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "lottery", "lottery-ticket", "lottery-tickets", "lottery-ticket-hypothesis", "lth", "lt", "ticket",
            "winning-ticket", "winning-tickets", "iterative", "iterative-magnitude-pruning", "rewinding", "lrr",
            "learning-rate-rewinding",
        ),
        ("imp",),
    ),
    **dict.fromkeys(("magnitude", "pruning", "prune", "magnitude-pruning", "unstructured"), _PRUNING),
    **dict.fromkeys(("edge-popup", "popup", "ep", "hidden-network", "hidden-networks", "supermask"), ("edge-popup",)),
    **dict.fromkeys(("supermasks", "zhou", "deconstructing-lottery-tickets"), ("bernoulli", "edge-popup")),
    **dict.fromkeys(("gmp", "gradual-magnitude-pruning", "zhu-gupta", "polynomial"), ("gradual",)),
    **dict.fromkeys(("l0", "l0-regularization", "hard-concrete", "gumbel", "movement"), ("gates",)),
    **dict.fromkeys(("omp", "oneshot-magnitude-pruning", "fine-tune", "finetune"), ("one-shot",)),
    **dict.fromkeys(("ebt", "eb-train", "earlybird"), ("early-bird",)),
    **dict.fromkeys(("mpt", "multi-prize", "multi-prize-ticket", "binary"), ("biprop",)),
    **dict.fromkeys(("rare-gems", "rare-gem"), ("gem-miner",)),
    **dict.fromkeys(("baseline", "full", "train", "unpruned"), ("dense",)),
    **dict.fromkeys(("structured", "filter", "channel", "channels", "l1", "l1-norm"), ("filters",)),
    **dict.fromkeys(("dynamic-sparse-training", "dst", "rigging-the-lottery"), ("rigl", "set")),
    **dict.fromkeys(("at-init", "pruning-at-initialization", "foresight"), ("snip", "grasp", "synflow")),
}  # fmt: skip
COMMANDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("run", "prune", "find", "start", "mask", "imp", "edge-popup"), ("search",)),
    **dict.fromkeys(("list", "ls"), ("runs list",)),
    **dict.fromkeys(("rm", "remove", "delete"), ("runs rm",)),
    **dict.fromkeys(("show", "info", "describe", "view"), ("inspect",)),
    **dict.fromkeys(("eval", "test", "validate"), ("evaluate",)),
    **dict.fromkeys(("plot", "table", "diff"), ("compare",)),
    **dict.fromkeys(("retrain", "finetune", "fine-tune"), ("train",)),
    **dict.fromkeys(("continue",), ("resume",)),
    **dict.fromkeys(("benchmark", "time", "speed"), ("bench",)),
    **dict.fromkeys(("convert", "save"), ("export",)),
    **dict.fromkeys(("networks",), ("models",)),
    **dict.fromkeys(("datasets",), ("data",)),
}
FLAGS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("--learning-rate", "--rate"), ("--lr",)),
    **dict.fromkeys(("--arch", "--architecture", "--network", "--net"), ("--model",)),
    **dict.fromkeys(("--dataset", "--data-set"), ("--data",)),
    **dict.fromkeys(("--algorithm", "--algo", "--pruner", "--strategy"), ("--method",)),
    **dict.fromkeys(("--gpu", "--cuda"), ("--device",)),
    **dict.fromkeys(("--wd", "--l2"), ("--weight-decay",)),
    **dict.fromkeys(("--bs", "--batch"), ("--batch-size",)),
    **dict.fromkeys(("--opt",), ("--optimizer",)),
    **dict.fromkeys(("--checkpoint", "--ckpt", "--pretrained"), ("--weights",)),
    **dict.fromkeys(("--out", "--output", "--output-dir", "--save-dir", "--logdir"), ("--runs",)),
    **dict.fromkeys(("--num-workers",), ("--workers",)),
}
# By what an unknown word is called in the sentence about it (see `errors.unknown`).
BY_KIND: Mapping[str, Mapping[str, tuple[str, ...]]] = {"method": METHODS, "command": COMMANDS, "flag": FLAGS}


def meant(kind: str, word: str) -> tuple[str, ...]:
    """The names that a word of the field stands for, none where it is no such word."""
    return BY_KIND.get(kind, {}).get(word.lower().replace("_", "-"), ())
