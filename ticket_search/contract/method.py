"""What a search method is: its flags, what holds for its tickets, its plan, its search, and its way into the training.

A method is one module: a docstring of the idea in one line and the paper in the next, a `Config` whose fields are its
flags, `TRAITS`, `plan(config, targets, steps_per_epoch)`, `search(model, run)`, `WHEN`, which says in one line when to
use it, and, where not every network will do, `check(model, data, config)`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from .flags import Config, flag, public_fields

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from supermask import Targets, Ticket


@dataclass(frozen=True)
class Traits:
    """What holds for a method's tickets; the shared tests and the controls go by it.

    exact_density: the masks keep exactly `floor(density * n + 0.5)` weights. A method whose masks are sampled or follow
        from a threshold says False.
    nested: over levels the masks only shrink.
    dense: the method keeps every weight, whatever density is asked.
    weights: what happens to the weights under the masks. `trained`; `frozen`: drawn once and never changed, so that the
        ticket's start and final states differ in masks and statistics only; `redrawn`: never trained, but the search
        draws dropped ones anew; `computed`: never trained, and the network runs on what a rule makes of them, as their
        signs times a gain. Of all that are not trained the ticket's two states have the same weights.
    changes_masks: the masks change in the course of the training that gives the ticket its weights, so that no control
        can be trained as the ticket was.
    looks_at_steps: a hook of the method looks at the network in the course of a training, or stops it.
    """

    exact_density: bool = True
    nested: bool = False
    dense: bool = False
    weights: Literal["trained", "frozen", "redrawn", "computed"] = "trained"
    changes_masks: bool = False
    looks_at_steps: bool = False

    @property
    def trains_weights(self) -> bool:
        """Whether the ticket's weights are trained; else its controls are evaluated and not trained."""
        return self.weights == "trained"


@dataclass(frozen=True)
class Stage:
    """One training in a method's plan: its name, the density it trains at, and its number of steps."""

    name: str
    density: float
    steps: int


@dataclass(frozen=True)
class Method:
    """A method, read from its file. `when` says in one line when to use it."""

    name: str
    idea: str
    paper: str
    when: str
    Config: type[Config]
    traits: Traits
    plan: Callable[[Any, Targets, int], list[Stage]]
    # (model, run): the run has `config` and `data`.
    search: Callable[[Any, Any], Ticket]
    # (model, data, config): raises a RequestError for a network that the method can do nothing with.
    check: Callable[..., None] | None = None


def describe_method(name: str, module: ModuleType) -> Method:
    """The method that a module holds: its docstring is the idea in one line and then the paper."""
    idea, _, paper = (module.__doc__ or "").partition("\n")
    return Method(
        name=name,
        idea=idea.strip(),
        paper=" ".join(paper.split("\n\n")[0].split()),
        when=getattr(module, "WHEN", "") or _usual_use(module.TRAITS),
        Config=module.Config,
        traits=module.TRAITS,
        plan=module.plan,
        search=module.search,
        check=getattr(module, "check", None),
    )


def _usual_use(traits: Traits) -> str:
    """When to use a method that does not say so itself."""
    if traits.dense:
        return "To train a network whole, beside the tickets that are compared with it."
    if not traits.trains_weights:
        return "To find a subnetwork that is good without training its weights."
    return "To find a sparse network whose weights are trained."


class Hook:
    """What a method does inside a training: the only way into the loop.

    A hook overrides what it needs; what it does not override does nothing. In each step the loop calls, in this order:
    `before_forward`, the forward pass, `extra_loss`, the backward pass, `before_step`, the optimizer's step, `on_step`.
    """

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters with a learning rate or weight decay of their own, as PyTorch's parameter groups.

            return [{"params": scores, "lr": 1.0, "weight_decay": 0.0}]

        `lr` is the rate at its highest: it follows the configured schedule. What a group does not say, and every
        trainable parameter that is in none of them, is as configured.
        """
        return []

    def before_forward(self, step: int) -> None:
        """Before the forward pass of a training step, as to clamp parameters; `step` counts the steps done."""

    def extra_loss(self) -> Tensor | None:
        """What is added to the loss before it is differentiated, as a penalty; it is not part of the logged loss."""
        return None

    def before_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> bool:
        """After the backward pass: the gradients are whole, those of dropped weights included.

        Returns:
            Whether the optimizer makes its step.
        """
        return True

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """After the optimizer's step, or where it would have been; `step` counts the steps done, this one included."""

    def sees(self, step: int) -> bool:
        """Whether `on_step` keeps the network or the optimizer as they are after so many steps.

        On several ranks they are then brought up to date: running statistics, and what is shared out (`--fsdp`).
        """
        return False

    def on_epoch(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """After an epoch's last step."""

    def is_choice(self, step: int) -> bool:
        """Whether the network after so many steps may be the one that validation chooses: not while it is denser."""
        return True

    def done(self) -> bool:
        """Whether to stop before the configured end."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What must survive a stop: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


def method_problems(name: str, module: Any) -> list[str]:
    """Why the module of another package is no method, all of it; empty where it is one."""
    missing = [part for part in ("Config", "TRAITS", "plan", "search") if not hasattr(module, part)]
    problems = [f"it has no {', '.join(missing)}"] if missing else []
    idea, _, paper = (module.__doc__ or "").strip().partition("\n")
    if not idea.strip() or not paper.strip():
        problems.append("its docstring does not open with the idea in one line and the paper after it")
    kind = getattr(module, "Config", Config)
    if not (isinstance(kind, type) and issubclass(kind, Config)):
        problems.append("its Config is no subclass of ticket_search.contract.flags.Config")
    else:
        default = kind.model_fields["method"].default
        if default != name and not missing:
            problems.append(f"the method of its Config is {default!r}, expected {name!r}")
        if bare := [key for key, field in public_fields(kind).items() if not field.description]:
            problems.append(f"the flags {', '.join(map(flag, bare))} have no description")
    if not isinstance(getattr(module, "TRAITS", Traits()), Traits):
        problems.append("its TRAITS are no ticket_search.contract.method.Traits")
    if not isinstance(when := getattr(module, "WHEN", ""), str) or "\n" in when:
        problems.append(f"its WHEN is {when!r}, expected one line of text")
    uncallable = [part for part in ("plan", "search", "check") if not callable(getattr(module, part, len))]
    return problems + [f"its {part} is no function" for part in uncallable]
