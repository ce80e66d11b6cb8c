"""The runs of a comparison as they lie on disk, and what others have measured, in one shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract.errors import RequestError
from ..contract.flags import read_json, read_toml
from ..running.read_config import find_kind
from ..runs.names import CONTROLS

# What makes two runs the same experiment but for chance: everything that is not a seed or a place.
_SEEDS = ("seed", "init_seed", "order_seed", "mask_seed")
_NOT_COMPARED = frozenset({*_SEEDS, "data_dir", "threads", "workers", "ticket", "whole", "device"})


@dataclass(frozen=True)
class Member:
    """One seed of an experiment: a run, or lines of somebody's table.

    `rows` has a measurement per level, or one; `controls` one per control. `pair` is what the runs of other
    experiments must share to be compared seed by seed: the seeds of the weights and of the data order.
    """

    name: str
    recipe: dict[str, Any]
    seed: int
    seeds: tuple[Any, ...]
    rows: list[dict[str, Any]]
    controls: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    dense_trainings: float | None = None
    measured_here: bool = True

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.recipe["method"])

    @property
    def pair(self) -> tuple[Any, ...]:
        """The seeds of weights and order."""
        return self.seeds[:2]

    @property
    def frozen(self) -> bool:
        """Whether the ticket's weights are never trained."""
        return self.measured_here and not find_kind(self.method).traits.trains_weights

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned, and what there is was trained."""
        return len(self.rows) == 1 and self.rows[0]["density"] == 1 and not self.frozen

    @property
    def starts_dense(self) -> bool:
        """Whether the first of several rows is the dense network."""
        return len(self.rows) > 1 and self.rows[0]["density"] == 1

    @property
    def whole_units(self) -> bool:
        """Whether filters, blocks or groups were dropped, not single weights."""
        if not self.measured_here:
            return False
        # A field of most methods, and fixed in that of filters.
        fixed = vars(find_kind(self.method).Config).get("granularity", "weight")
        return bool(self.recipe.get("granularity", fixed) != "weight")

    def cost(self, level: int) -> float | None:
        """The search up to a level, in trainings of the dense network."""
        total = self.rows[level].get("dense_trainings", self.dense_trainings)
        if total is None or not self.starts_dense or not self.measured_here:
            return total
        # All levels after the dense one take equally many steps.
        return float(1 + level * (total - 1) / (len(self.rows) - 1))


def read_members(
    runs: Iterable[str | Path], others: Iterable[Mapping[str, Any]] = ()
) -> tuple[list[Member], list[str]]:
    """The finished runs among folders, with what others have measured, and a sentence for each that is left out."""
    members, left_out = [], []
    for folder in dict.fromkeys(Path(run).resolve() for run in runs):
        folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        if not (folder / "config.toml").exists():
            left_out.append(f"{folder}: not a run")
        elif not (folder / "summary.json").exists():
            left_out.append(f"{folder}: not finished; `ticket resume {folder}` goes on")
        else:
            try:
                member = _read_run(folder)
            except (ValueError, KeyError, OSError) as error:
                left_out.append(f"{folder}: damaged ({error})")
                continue
            try:
                find_kind(member.method)
            except RequestError as error:  # as of a method whose package is not installed here
                left_out.append(f"{folder}: {error}")
                continue
            if claim := _false_claim(folder, member):
                left_out.append(f"{folder}: refused: {claim}")
            else:
                members.append(member)
    return members + _read_others(others), left_out


def _read_run(folder: Path) -> Member:
    config, summary = read_toml(folder / "config.toml"), read_json(folder / "summary.json")
    controls = read_json(folder / CONTROLS)["rows"] if (folder / CONTROLS).exists() else []
    seed = config.get("seed", 0)
    # A ticket brings the weights that it starts from: who trains it again with other seeds draws none of its own.
    drawn = {**config, **_drawn_by(config)}
    init = drawn.get("init_seed", drawn.get("seed", 0))
    return Member(
        name=str(folder),
        recipe={key: value for key, value in config.items() if key not in _NOT_COMPARED},
        seed=seed,
        seeds=(init, config.get("order_seed", seed), config.get("mask_seed", seed)),
        rows=[_mark_end(row, summary["cost"]) for row in summary.get("levels") or [summary]],
        controls=controls,
        seconds=summary["seconds"],
        dense_trainings=summary["cost"]["dense_trainings"],
    )


def _mark_end(row: dict[str, Any], cost: Mapping[str, float]) -> dict[str, Any]:
    """The row, and whether its minimum of validation loss is the last step: training longer may find another."""
    moment = row.get("min_validation_loss")
    if moment is None:
        return row
    whole = round(cost["steps"] / cost["dense_trainings"]) if cost["dense_trainings"] else 0
    return {**row, "min_validation_loss": {**moment, "at_end": moment["step"] == whole}}


def _drawn_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """The seeds of the weights that a trained ticket started from, where its file is still there."""
    import supermask

    own = config.get("control", "none") == "reinit"
    if config["method"] != "train" or own or not Path(config["ticket"]).is_file():
        return {}
    recorded = supermask.load(config["ticket"]).meta.get("config", {})
    return {key: recorded[key] for key in ("seed", "init_seed") if key in recorded}


def _false_claim(folder: Path, member: Member) -> str:
    """What the ticket does not keep of what the run says of it, or nothing."""
    import supermask

    path = folder / "ticket.safetensors"
    if not path.exists():
        return f"{path.name} is missing"
    try:
        ticket = supermask.load(path)
    except supermask.TicketError as error:
        return str(error)
    claimed = member.rows[-1]
    if ticket.masks.kept != claimed["kept"]:
        return f"its ticket keeps {ticket.masks.kept:,} weights, its summary says {claimed['kept']:,}"
    said = ticket.meta.get("accuracy", {}).get("final", {}).get("test")
    if said is not None and said != claimed["test_accuracy"]:
        return f"its ticket was measured at {said:.2f} %, its summary says {claimed['test_accuracy']:.2f} %"
    return ""


def _read_others(rows: Iterable[Mapping[str, Any]]) -> list[Member]:
    """Lines of a table, one for each density and seed, as members."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    # Controls last: one may be on other data than what it is a control of.
    for row in sorted(rows, key=lambda row: bool(row.get("control"))):
        key = (*(row.get(name) or "" for name in ("method", "label", "model", "data")), row["seed"])
        if row.get("control") and key not in found:
            key = next((other for other in found if (*other[:3], other[4]) == (*key[:3], key[4])), key)
        moment = {"min_validation_loss": {"step": row["early_step"]}} if row.get("early_step") is not None else {}
        found.setdefault(key, []).append({**row, **moment})
    densities: dict[tuple[Any, ...], set[float]] = {}
    for key, lines in found.items():
        densities.setdefault(key[:4], set()).update(line["density"] for line in lines if not line.get("control"))
    members = []
    for key, lines in found.items():
        method, label, model, data, seed = key
        recipe = {"method": method, "label": label, "model": model, "data": data}
        # The same level of the same density in all seeds, whatever is missing of one.
        order = sorted(densities[key[:4]], reverse=True)
        places = {density: place if len(order) > 1 else None for place, density in enumerate(order)}
        placed = [{**line, "level": _level(line, places.get(line["density"]))} for line in lines]
        own = sorted((line for line in placed if not line.get("control")), key=lambda line: -line["density"])
        beside = [line for line in placed if line.get("control")]
        members.append(
            Member(
                name=f"{label or method}, seed {seed}",
                recipe={key: value for key, value in recipe.items() if value},
                seed=seed,
                seeds=(seed, seed, seed),
                rows=own,
                controls=beside,
                measured_here=False,
            )
        )
    return [member for member in members if member.rows]


def _level(line: Mapping[str, Any], otherwise: int | None) -> int | None:
    """The level that a line says, or else its place."""
    level: int | None = line.get("level")
    return otherwise if level is None else level
