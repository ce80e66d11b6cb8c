"""The form of the records in a run's folder: what all who read them take for granted, checked before they do.

Anybody may have written them. What a record has beside this is as it was written, and matters to its reader only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

import pydantic
from pydantic import AfterValidator, Field

from supermask.masks.texts import harmless

from ..contract.errors import RequestError, describe_expected
from ..contract.metric import metric_of, value_of
from .names import CONFIG, CONTROLS, EARLIER_STATE, INPUTS, STATE, SUMMARY

_LARGEST = 1e300


def _fits(value: float) -> float:
    # A training that has diverged has no number, which is a result too. An integer may be larger than any float.
    odd = isinstance(value, float) and not math.isfinite(value)
    if not (odd or abs(value) <= _LARGEST):
        raise ValueError("a number that is too large")
    return value


def _is_plain(value: Any) -> Any:
    kinds = (bool, int, float, str)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, kinds) for each in values):
        raise ValueError("expected true or false, a number, text, or a list of these")
    if any(isinstance(each, int) and abs(each) >= 2**64 for each in values):
        raise ValueError("a number that is too large")
    return value


_Value = Annotated[int | float, AfterValidator(_fits)]
_Amount = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, lt=2**62)]
_Seed = Annotated[int, Field(ge=0, lt=2**64)]
_Density = Annotated[float, Field(ge=0, le=1)]


class _Form(pydantic.BaseModel, extra="allow", strict=True):
    """Fields with a value here may be missing; one that is there is of its type."""


class _Values(_Form):
    test_metric: _Value = 0.0
    val_metric: _Value = 0.0
    test_accuracy: _Value = 0.0
    val_accuracy: _Value = 0.0
    val_loss: _Value = 0.0


class _Moment(_Values):
    step: _Count


class _Measured(_Values):
    density: _Density
    kept: _Count
    learned_nothing: bool = False
    min_validation_loss: _Moment | None = None
    best_validation: _Moment | None = None
    seconds: _Amount = 0.0

    @pydantic.model_validator(mode="after")
    def _is_measured(self) -> Self:
        lacking = [split for split in ("test", "val") if value_of(self.model_dump(exclude_unset=True), split) is None]
        if lacking:
            raise ValueError(f"it has no {' and no '.join(f'{split}_metric' for split in lacking)}")
        return self


class _Metric(_Form, extra="forbid"):
    name: str
    direction: str = "higher"
    unit: str = ""

    @pydantic.model_validator(mode="after")
    def _can_be(self) -> Self:
        metric_of({"metric": self.model_dump()})
        return self


class _Level(_Measured):
    level: _Count
    dense_trainings: _Amount = 0.0


class _Control(_Measured):
    control: str
    trained: bool = True
    data: str = ""
    level: _Count | None = None
    seed: _Seed = 0
    metric: _Metric | None = None
    path: str = ""


class _Part(_Form):
    steps: _Count
    flops: _Amount
    seconds: _Amount
    dense_trainings: _Amount


class _Cost(_Part):
    weights: _Part | None = None


class _Summary(_Measured):
    name: str
    method: str
    weights: _Count
    seconds: _Amount
    cost: _Cost
    model: str = ""
    data: str = ""
    seed: _Seed = 0
    parameters: _Count = 0
    metric: _Metric | None = None
    levels: list[_Level] = []
    tasks: list[dict[str, Any]] = []
    warnings: list[str] = []
    compact: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def _counts_its_levels(self) -> Self:
        if [row.level for row in self.levels] != list(range(len(self.levels))):
            raise ValueError("its levels are not numbered from 0")
        return self


class _Controls(_Form):
    rows: list[_Control]


class _Inputs(_Form):
    start: str
    data: str
    code: dict[str, str]
    python: str


class _Config(_Form):
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_is_plain)]]

    method: str
    model: str = ""
    data: str = ""
    ticket: str = ""
    seed: _Seed = 0
    init_seed: _Seed = 0
    order_seed: _Seed = 0
    mask_seed: _Seed = 0


class _State(_Form):
    """A saved state: results of stages by name, a training that was stopped, and where the logs end."""

    stages: dict[str, dict[str, Any]]
    training: dict[str, Any] | None
    start: str | None
    seconds: _Amount
    event_bytes: dict[str, _Count]
    metrics_bytes: _Count
    metrics_sha256: str | None = None
    data: str | dict[str, str] | None = None
    bad_images: dict[str, Any] = {}
    warnings: list[str] = []

    @pydantic.model_validator(mode="after")
    def _counts_its_steps(self) -> Self:
        steps = [stage.get("steps", 0) for stage in self.stages.values()]
        if not all(type(each) is int and 0 <= each < 2**62 for each in steps):
            raise ValueError("a stage whose steps are no number of them")
        if self.training is not None and not isinstance(self.training.get("name"), str):
            raise ValueError("a training without a name")
        return self


_FORMS: dict[str, type[_Form]] = {
    CONFIG: _Config, SUMMARY: _Summary, CONTROLS: _Controls, INPUTS: _Inputs, STATE: _State, EARLIER_STATE: _State,
}  # fmt: skip
_SHOWN = 5


def check_form(name: str, found: Mapping[str, Any], where: str) -> None:
    """Check that a record has the form of those of its name, if it has one.

    Raises:
        RequestError: says what is wrong, the first things of many.
    """
    if name not in _FORMS:
        return
    try:
        _FORMS[name].model_validate(found)
    except pydantic.ValidationError as error:
        raise RequestError(f"{where} is damaged: {explain(error)}") from None


def explain(error: pydantic.ValidationError) -> str:
    """What is wrong with a record: the first things, and how many more there are."""
    # The list of what is wrong with very many values takes longer than all else.
    items = error.errors(include_url=False, include_context=False) if error.error_count() < 1_000 else []
    told = [_sentence(item) for item in items[:_SHOWN]]
    rest = error.error_count() - len(told)
    more = [f"{rest:,} {'more ' if told else ''}values that are not what is expected there"] if rest else []
    return "; ".join([*told, *more])


def _sentence(item: Any) -> str:
    place = harmless(".".join(map(str, item["loc"])), 100)
    if item["type"] == "missing":
        return f"it has no {place}"
    given = "" if isinstance(item["input"], (dict, list)) else f" {harmless(str(item['input']), 50)}"
    return f"{place}{given}: {describe_expected(item)}".removeprefix(": ")
