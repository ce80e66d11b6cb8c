"""Words of the field, and of other tools, for what has another name here. Imports no torch.

An unknown word that stands in one of these tables is answered by the name that is meant; any other by the nearest name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from supermask.plugins.other_names import read_fraction

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


def meant_value(name: str, value: Any, share: bool, from_checkpoint: bool | None) -> str:
    """`; did you mean 0.5?`: what was meant by a wrong value of a flag; empty if that is unclear.

    A percentage where a fraction is expected, of which `share` says that it is; several seeds in place of one; or no
    epochs, for a checkpoint that is trained already: `from_checkpoint` says whether the method prunes it as it is; None
    where there is no checkpoint.
    """
    if share and (fraction := read_fraction(value)) and str(value) != f"{fraction:g}":
        return f"; did you mean {fraction:g}?"
    if name == "seed" and re.fullmatch(r"\d+([-,]\d+)+", str(value)):
        return f"; did you mean --seeds {value}, a search with each?"
    if name == "epochs" and str(value) == "0" and from_checkpoint is not None:
        return _NO_TRAINING if from_checkpoint else _WITHOUT_TRAINING
    return ""


_NO_TRAINING = "; with --weights nothing is trained before pruning: leave --epochs out"
_WITHOUT_TRAINING = (
    "; this method trains. --method wanda --weights FILE, or sparsegpt, prunes a trained checkpoint without training, "
    "as supermask.prune does in Python"
)


def meant_fractions(values: Sequence[Any], item: Any) -> str:
    """What is wrong with a list of fractions that are percentages, as `80,50`, from pydantic's item; else empty."""
    fractions = [fraction for value in values if (fraction := read_fraction(value)) is not None]
    above = 1 in [item.get("ctx", {}).get(bound) for bound in ("le", "lt")]
    percent = [str(value) != f"{fraction:g}" for value, fraction in zip(values, fractions, strict=False)]
    if len(fractions) < len(values) or not all(percent) or not (above or str(item["input"]).endswith("%")):
        return ""
    return f"expected numbers less than 1; did you mean {','.join(f'{fraction:g}' for fraction in fractions)}?"
