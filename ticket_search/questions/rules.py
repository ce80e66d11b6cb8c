"""The rules of a diagnosis: each looks at the evidence for one cause, and says what would test it.

Thresholds have their reasons beside them. The sources are those of the findings, and for the question itself Raschka,
Machine Learning Q and AI, 2024, exercise 4-1: what to try when the subnetwork is not very good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..contract.errors import RequestError, command_line
from ..contract.flags import is_zero, public_fields
from .evidence import Curve, Evidence
from .suggestions import Finding, change

LOTTERY = "Frankle & Carbin, The Lottery Ticket Hypothesis, 2018"
CONNECTIVITY = "Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020"
REWINDING = "Renda, Frankle & Carbin, Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020"
AT_INIT = "Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing the Mark?, 2021"
FLOW = "Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020"
HIDDEN = "Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020"
DYING = "Lu et al., Dying ReLU and Initialization, 2019"
STUDENT = "Student, The Probable Error of a Mean, 1908"

# So many times the usual rate is far off: published recipes differ by less, as Adam at 2e-2 on MNIST-1D (17 times).
_FAR = 20.0
# The mean training loss of the last quarter is so much above its lowest: more than the noise of batches.
_LOST = 1.3
# Below this training accuracy a network has not fitted its training data: sparse and dense ones of Frankle & Carbin do.
_FITTED = 95.0
# Nats by which the validation loss would fall if the training were twice as long: below, nothing is left to gain.
_STILL_FALLS = 0.05
# Frankle & Carbin drop 10 to 20 % a level and find 40 % and more clearly worse.
_STEEP = 0.4
_GENTLE = 0.2
# Frankle et al. call training stable below 2 percentage points of barrier.
_STABLE = 2.0
# A layer this much sparser than the whole, with less than a weight for each unit, is where a network is cut.
_BOTTLENECK = 0.1
# Of a network whose tensors differ by less in size it does not matter much which way of ranking is taken.
_UNEQUAL = 10.0
# Half the units of a layer without any input: the layer is not the one that was asked for.
_EMPTIED = 0.5
# Ramanujan et al. find the best supermasks between these densities.
_BEST_DENSITIES = (0.3, 0.7)
_MORE_EPOCHS = 4
_EARLY, _REWIND_SHARE = 0.001, 0.01
_WARMUP_SHARE = 0.1
SEEDS = 5
_BEFORE_TRAINING = ("random", "magnitude-at-init", "snip", "grasp", "synflow")
REWINDING_METHODS = ("imp", "one-shot")

Rule = Callable[[Evidence], Finding | None]


def rate_too_high(e: Evidence) -> Finding | None:
    """The training of the dense network, or the only one, is lost, swings or stays near chance: an alarm by itself."""
    curve, whose = (e.own, "the ticket") if e.base is None else (e.base, "the dense network")
    return None if curve is None else _rate_finding(e, curve, whose, alarm=True)


def rate_of_ticket(e: Evidence) -> Finding | None:
    """The same of the training of a poor ticket, where the dense network has trained well."""
    if e.base is None or e.own is None or not e.is_poor or rate_too_high(e) is not None:
        return None
    return _rate_finding(e, e.own, "the ticket", alarm=False)


def _rate_finding(e: Evidence, curve: Curve, whose: str, alarm: bool) -> Finding | None:
    signs = _signs_of_rate(e, curve, alarm)
    if not signs:
        return None
    told = f"{e.config.optimizer} with --lr {e.config.lr:g}, usual {e.usual_rate:g}; {'; '.join(signs)}"
    hypothesis = f"The learning rate is too high: {whose} trains badly."
    return Finding("rate-too-high", hypothesis, told, LOTTERY, _lower_rate(e), alarm=alarm)


def _signs_of_rate(e: Evidence, curve: Curve, whole: bool) -> list[str]:
    """What speaks for too high a rate in a training, in numbers. A sparse network may stay near chance without it."""
    quarter = [loss for step, loss in zip(curve.steps, curve.losses, strict=True) if step > 0.75 * curve.whole]
    lowest, ends = min(curve.losses), sum(quarter) / len(quarter)
    last, value = curve.trained[-1], curve.values[-1]
    fitted = e.metric.is_accuracy and last >= _FITTED
    signs = []
    if lowest > 0 and ends >= _LOST * lowest and not fitted and len(curve.steps) > 2:
        signs.append(f"the mean training loss of the last quarter is {ends:.3g}, its lowest was {lowest:.3g}")
    if e.guessing is None or not whole:
        return signs
    still = curve.rise is None or curve.rise > e.noise_of(value, value)
    if e.samples and value <= e.guessing + 3 * e.error_of(e.guessing) and curve.rise is not None and not still:
        signs.append(f"at its end validation accuracy is {e.show(value)}, guessing gives {e.guessing:.3g} %")
    if e.config.lr >= _FAR * e.usual_rate and not fitted and not still:
        signs.append(f"training accuracy stays at {last:.1f} %")
    return signs


def _lower_rate(e: Evidence) -> dict[str, Any]:
    """The usual rate of the optimizer where that is far lower, else a tenth of the present one."""
    rate = e.usual_rate if e.config.lr >= 3 * e.usual_rate else e.config.lr / 10
    return {"lr": float(f"{rate:.3g}")}


def too_few_epochs(e: Evidence) -> Finding | None:
    """At its end the training of the dense network, or the only one, is still getting better: an alarm by itself."""
    curve, whose = (e.own, "the ticket") if e.base is None else (e.base, "the dense network")
    return None if curve is None else _epochs_finding(e, curve, whose, alarm=True)


def epochs_of_ticket(e: Evidence) -> Finding | None:
    """The same of the training of a poor ticket, where that of the dense network was long enough."""
    if e.base is None or e.own is None or not e.is_poor or too_few_epochs(e) is not None:
        return None
    return _epochs_finding(e, e.own, "the ticket", alarm=False)


def _epochs_finding(e: Evidence, curve: Curve, whose: str, alarm: bool) -> Finding | None:
    sign = _still_learning(e, curve)
    if not sign:
        return None
    flags: dict[str, Any] = {"epochs": _MORE_EPOCHS * e.config.epochs}
    if e.config.milestones:
        flags["milestones"] = tuple(_MORE_EPOCHS * epoch for epoch in e.config.milestones)
    hypothesis = f"There are too few epochs: {whose} is still getting better where its training ends."
    evidence = (
        f"{e.config.epochs} epoch{'' if e.config.epochs == 1 else 's'} of {e.steps // e.config.epochs} steps; {sign}"
    )
    return Finding("too-few-epochs", hypothesis, evidence, LOTTERY, flags, alarm=alarm)


def _still_learning(e: Evidence, curve: Curve) -> str:
    """What shows that a training ends too early; empty where nothing does."""
    value, last = curve.values[-1], curve.trained[-1]
    if curve.before_end is None:
        # Few evaluations: the mean over the last steps against the end. Dropout and augmentation make it lower too, but
        # not by so much within a quarter of a training.
        if value - last > max(2 * e.least, e.noise_of(value, last)) and e.delta is not None:
            return f"it ends at {e.show(value)} on validation, after {e.show(last)} on average in its last steps"
        return ""
    # With a rate that falls to the end, everything gets better at the end: that is what it is for.
    if e.config.schedule != "constant" or not curve.best_is_last:
        return ""
    if e.metric.is_accuracy and last >= _FITTED:
        return ""
    before, fall, rise = curve.before_end, curve.fall or 0.0, curve.rise or 0.0
    loss = curve.validation_losses
    if e.metric.is_accuracy and fall >= _STILL_FALLS:
        return (
            f"from step {curve.steps[before]} to the end at step {curve.steps[-1]} validation loss falls from "
            f"{loss[before]:.3g} to {loss[-1]:.3g}, and training accuracy is {last:.1f} %"
        )
    if e.delta is not None and rise > max(2 * e.least, e.noise_of(value, curve.values[before])):
        return f"from step {curve.steps[before]} to the end validation rises by {e.show_gap(rise)}"
    return ""


def collapse(e: Evidence) -> Finding | None:
    """A layer is empty, or so sparse that the network is cut there."""
    if not e.is_poor:
        return None
    cut = [
        layer for layer in e.layers
        if layer.kept == 0 or (layer.kept < layer.units and layer.density < _BOTTLENECK * e.density)
    ]  # fmt: skip
    if not cut:
        return None
    told = ", ".join(f"{layer.name} keeps {layer.kept:,} of {layer.size:,} weights" for layer in cut[:3])
    flags: dict[str, Any] = {}
    if "allocation" in public_fields(type(e.config)) and getattr(e.config, "allocation", None) in (None, "global"):
        flags = {"allocation": "layerwise" if e.config.method == "imp" or not e.trains else "erk"}
    hypothesis = "The network is cut: ranking all weights together has left a layer next to nothing."
    evidence = f"{told}, where the whole keeps {100 * e.density:.3g} %"
    return Finding("collapse", hypothesis, evidence, FLOW, flags)


def too_steep(e: Evidence) -> Finding | None:
    """More than is good was dropped at once."""
    if not e.is_poor or not e.trains or getattr(e.config, "granularity", "weight") != "weight":
        return None
    before = (1.0, *e.densities)
    drops = {1 - after / last: (last, after) for last, after in zip(before, e.densities, strict=False) if last > 0}
    if e.config.method not in REWINDING_METHODS or not drops or max(drops) < _STEEP:
        return None
    last, after = drops[max(drops)]
    flags: dict[str, Any] = {"fraction": _GENTLE}
    if e.config.method == "one-shot":
        flags = {"method": "imp", **flags}
        if getattr(e.config, "allocation", None) not in (None, "global", "layerwise"):
            flags["allocation"] = "layerwise"
    elif getattr(e.config, "levels", ()):
        flags |= {"levels": None}
    hypothesis = "Too much was pruned at once: iteratively, a fifth of the rest a level, better weights are kept."
    evidence = (
        f"from {100 * last:.3g} to {100 * after:.3g} % at once, {100 * max(drops):.0f} % of what was left; 10 to 20 % "
        f"a level is best, 40 % clearly worse"
    )
    return Finding("too-steep", hypothesis, evidence, LOTTERY, flags)


def pruned_before_training(e: Evidence) -> Finding | None:
    """The mask was chosen before there was anything to choose by."""
    if not e.is_poor or e.config.method not in _BEFORE_TRAINING or getattr(e.config, "granularity", "") != "weight":
        return None
    flags: dict[str, Any] = {"method": "imp", "fraction": _GENTLE}
    if getattr(e.config, "allocation", None) not in (None, "global", "layerwise"):
        flags["allocation"] = "layerwise"
    return Finding(
        "pruned-before-training", "The mask was chosen before training, where little is known of the weights.",
        f"{e.config.method} chooses at step 0; magnitudes after training give better masks", AT_INIT, flags,
    )  # fmt: skip


def unscaled(e: Evidence) -> Finding | None:
    """Frozen weights without the factor that keeps the variance of a layer's outputs, in a network without norms."""
    if not e.is_poor or getattr(e.config, "scaled", True) or e.normalized:
        return None
    return Finding(
        "unscaled-weights", "The frozen weights are too small: what is dropped takes a part of each layer's variance.",
        f"--no-scaled at {100 * e.density:.3g} %, and no norms: each layer's outputs shrink by "
        f"{e.density ** 0.5:.2g}", HIDDEN, {"scaled": True},
    )  # fmt: skip


def plain_init(e: Evidence) -> Finding | None:
    """Frozen weights that are not of one magnitude."""
    if not e.is_poor or e.trains or e.config.method != "edge-popup" or e.config.init in ("signed-constant", "keep"):
        return None
    return Finding(
        "plain-init", "The frozen weights are of many magnitudes: signed constants make better supermasks.",
        f"--init {e.config.init}; of four networks signed constants were better in each at 50 % density",
        HIDDEN, {"init": "signed-constant"},
    )  # fmt: skip


def layerwise(e: Evidence) -> Finding | None:
    """Every tensor keeps the same fraction, the small ones too."""
    if not e.is_poor or getattr(e.config, "allocation", None) != "layerwise" or len(e.layers) < 3 or not e.trains:
        return None
    sizes = sorted(e.layers, key=lambda layer: layer.size)
    if sizes[-1].size < _UNEQUAL * sizes[0].size or getattr(e.config, "granularity", "weight") != "weight":
        return None
    least = min(e.layers, key=lambda layer: layer.kept / layer.units)
    flags: dict[str, Any] = {"allocation": "global"}
    flags |= {key: None for key in ("conv_fraction", "output_fraction") if getattr(e.config, key, None) is not None}
    evidence = (
        f"{least.name} keeps {least.kept:,} weights for {least.units:,} units, {100 * least.density:.3g} %; ranked "
        "together, VGG-19 has tickets at 1.5 % instead of 6.9 %"
    )
    hypothesis = "Layers are pruned alike: small ones are left too little, and large ones keep what they do not need."
    return Finding("layerwise", hypothesis, evidence, LOTTERY, flags)


def rewind_later(e: Evidence) -> Finding | None:
    """The ticket goes back to a step from which training is not stable yet."""
    sign, measured = _instability(e)
    if not sign:
        return None
    stable = [b.step for b in e.barriers if b.arm == "ticket" and b.mean < _STABLE and b.step > e.start]
    step = min(stable) if stable else max(1, round(_REWIND_SHARE * e.steps))
    hypothesis = "The ticket goes back too far: from a later step on, training is stable to the order of its batches."
    return Finding("rewind-later", hypothesis, sign, CONNECTIVITY, {"rewind": f"{step}it"}, measured=measured)


def warm_up(e: Evidence) -> Finding | None:
    """The same instability has another cure: smaller first steps."""
    sign, measured = _instability(e)
    steps = max(1, round(_WARMUP_SHARE * e.steps))
    if not sign or not is_zero(e.config.warmup) or steps >= e.steps:
        return None
    hypothesis = "The first steps are too large for a sparse network: a warm-up makes them small."
    return Finding("warm-up", hypothesis, sign, LOTTERY, {"warmup": f"{steps}it"}, measured=measured)


def _instability(e: Evidence) -> tuple[str, bool]:
    """What speaks for it that the ticket's start is not stable yet, and whether that was measured; else an empty text.

    Where nothing was measured a start before 0.1 % of the training is suspected: rewinding goes to 0.1 to 1 % of it.
    """
    if not e.is_poor or e.config.method not in REWINDING_METHODS or getattr(e.config, "then", "rewind") != "rewind":
        return "", False
    at = e.start
    own = [each for each in e.barriers if each.arm == "ticket" and each.step == at and e.metric.is_accuracy]
    if own and own[0].mean < _STABLE:
        return "", False
    if own:
        pairs = f"{own[0].pairs} pair{'' if own[0].pairs == 1 else 's'}"
        told = f"the barrier from step {at:,} is {e.show_gap(own[0].mean)} ({pairs}), stable is below"
        return f"{told} {_STABLE:g}; a high barrier alone is no proof", True
    fresh = e.beside("reinit", "a draw of fresh weights under its mask")
    if fresh is not None and not fresh.better:
        return f"{fresh.told}: that its start is worth anything is not seen", True
    if at >= _EARLY * e.steps:
        return "", False
    return f"it goes back to step {at:,} of {e.steps:,}; whether that is too early has not been measured", False


def structure_alone(e: Evidence) -> Finding | None:
    """Shuffled or random masks do as well: how many weights each layer has is all that there is to this ticket."""
    names = {"shuffle": "its mask shuffled within each layer", "random": "a random mask of as many weights"}
    found = [beside for kind, named in names.items() if (beside := e.beside(kind, named)) is not None]
    if not e.is_poor or not found:
        return None
    best = min(found, key=lambda beside: beside.gap)
    if best.better:
        return None
    earlier = range(1, len(e.densities))
    levels = f" --levels {','.join(map(str, earlier))}" if e.level is not None and len(earlier) else ""
    return Finding(
        "structure-alone", "The structure alone may explain it: that it matters which weights are kept is not seen.",
        best.told, AT_INIT, command=command_line('controls', e.path) + levels,
    )  # fmt: skip


def emptied_units(e: Evidence) -> Finding | None:
    """Many units of a hidden layer have no input left, so that they are constants."""
    hidden = e.layers[:-1]
    if not e.is_poor or not hidden:
        return None
    worst = max(hidden, key=lambda layer: layer.emptied / layer.units)
    if worst.emptied < _EMPTIED * worst.units:
        return None
    return Finding(
        "emptied-units", "Most units of a layer are gone: the network is narrower than it looks.",
        f"{worst.emptied:,} of {worst.units:,} units of {worst.name} have no weight left", DYING,
        command=command_line('inspect', e.path, '--activations'),
    )  # fmt: skip


def dead_units(e: Evidence) -> Finding | None:
    """Most units of a layer that pruning has left inputs to act on no input, and in the dense network they do."""
    if not e.is_poor or not e.activity:
        return None
    worst = max(e.activity, key=lambda each: each.silent / each.units)
    if worst.silent < _EMPTIED * worst.units or (worst.dense is not None and 2 * worst.dense > worst.silent):
        return None
    told = f"{worst.silent:,} of the {worst.units:,} ReLU units of {worst.name} are active on no validation input"
    told += " though weights are left to them"
    told += "" if worst.dense is None else f"; of the dense network {worst.dense:,}"
    flags = _lower_rate(e) if e.trains else {}
    hypothesis = "Most units of a layer have died: no gradient reaches their weights any more."
    command = "" if flags else command_line("inspect", e.path, "--activations")
    return Finding("dead-units", hypothesis, told, DYING, flags, command=command)


def density_range(e: Evidence) -> Finding | None:
    """A supermask over frozen weights keeps too much, or too little, for there to be many to choose from."""
    low, high = _BEST_DENSITIES
    if not e.is_poor or e.config.method != "edge-popup" or low <= e.density <= high:
        return None
    return Finding(
        "density-of-supermask", "Of frozen random weights this is not a density at which good supermasks are found.",
        f"{100 * e.density:.3g} % is kept, the best are between {100 * low:g} and {100 * high:g} %", HIDDEN,
        {"density": low if e.density < low else high}, same_question=False,
    )  # fmt: skip


def too_few_seeds(e: Evidence) -> Finding | None:
    """The gap is above the margin, and within what chance explains."""
    if e.gap is None or e.is_poor or e.delta is None or e.gap <= e.least or len(e.gaps) >= SEEDS:
        return None
    return Finding(
        "too-few-seeds", "There are too few seeds to say whether it is poor.",
        f"{e.show_gap(e.gap)} below the dense network on {e.samples or 'the'} validation samples, where chance alone "
        f"makes up to {e.show_gap(e.noise)}; seeds that have run: {len(e.gaps)}", STUDENT, same_question=False,
    )  # fmt: skip


# In the order in which they are to be tried: no ticket is better than the trainings that made it, so that these come
# first; then what was pruned and how; then where the ticket starts.
RULES: tuple[Rule, ...] = (
    rate_too_high, too_few_epochs, collapse, too_steep, pruned_before_training, unscaled, plain_init, rate_of_ticket,
    epochs_of_ticket, layerwise, rewind_later, warm_up, structure_alone, emptied_units, dead_units, density_range,
    too_few_seeds,
)  # fmt: skip


def find(e: Evidence) -> list[Finding]:
    """What the rules find, in the order in which it is to be tried: what a number speaks for before what none does.

    A suggestion that cannot be carried out with the other flags of the run is left out.
    """
    found = [finding for rule in RULES if (finding := rule(e)) is not None and _is_possible(e, finding)]
    return sorted(found, key=lambda finding: not finding.measured)


def _is_possible(e: Evidence, finding: Finding) -> bool:
    try:
        change(e.config, finding.flags)
    except RequestError:
        return False
    return True
