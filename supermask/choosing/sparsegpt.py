"""SparseGPT: column after column is dropped by what it costs, and the columns behind it make up for the loss.

Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..masks.masks import Masks
from .calibration import Rule, Share, prune_in_order

DAMPING = 0.01
BLOCK = 128


def products(inputs: Tensor) -> Tensor:
    """[groups, samples, columns] -> X X^T, [groups, columns, columns]."""
    return inputs.mT @ inputs


def correct(
    weights: Tensor, sums: Tensor, share: Share, damping: float = DAMPING, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Masks, and weights of which the kept ones are changed so that the layer's outputs change little.

    The Hessian of a row's squared error is H = 2 X X^T, to whose diagonal `damping` times its mean is added; U is the
    upper Cholesky factor of its inverse. From the first column to the last, a dropped weight w of column j takes
    w / U_jj * U_jk off every weight k behind it. Which weights are dropped is chosen block by block as its turn comes,
    of N:M group by group: those of least (w / U_jj)^2. A column whose input is always 0 is set to 0.

    Each row keeps `floor(density * n + 0.5)` of its n weights, spread evenly over its blocks; the paper ranks the rows
    of a block together and drops `int((1 - density) * size)` of them, or one more.

    Args:
        weights: [groups, rows, columns].
        sums: `products` over all samples, [groups, columns, columns].
        share: what each row keeps.
        damping: added to the diagonal, in parts of its mean.
        block: columns whose corrections are passed on together; of N:M the next multiple of M below it.
    """
    weights = weights.clone()
    factor = _factor(weights, 2 * sums, damping)
    masks = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    columns, group = weights.shape[-1], share.groups.group if share.groups else 0
    step = max(group, block // group * group) if group else block
    for first in range(0, columns, step):
        last = min(first + step, columns)
        inner = factor[:, first:last, first:last]
        own, kept = weights[..., first:last], masks[..., first:last]
        scale = inner.diagonal(dim1=-2, dim2=-1)[:, None]
        if not group:
            kept.copy_(share.choose((own / scale).square(), first))
        losses = torch.zeros_like(own)
        for j in range(last - first):
            if group and j % group == 0:
                ahead = slice(j, j + group)
                kept[..., ahead] = share.choose((own[..., ahead] / scale[..., ahead]).square())
            losses[..., j] = (own[..., j] / scale[..., j]).masked_fill(kept[..., j], 0)
            own[..., j:] -= losses[..., j, None] * inner[:, None, j, j:]
        weights[..., last:] -= losses @ factor[:, first:last, last:]
    return masks, weights.masked_fill(~masks, 0)


def _factor(weights: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse; weights that no input reaches become 0."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    weights.masked_fill_(dead[:, None], 0)
    diagonal.masked_fill_(dead, 1)
    diagonal += damping * diagonal.mean(-1, keepdim=True)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"sparsegpt: the Hessian of {hessian.shape[-1]} columns has no inverse in {hessian.dtype}: expected more "
            "damping, or a model in float64"
        ) from error
    return factor


SPARSEGPT = Rule("sparsegpt", products, correct)


def prune_and_correct(
    model: nn.Module,
    density: float | Mapping[str, float],
    granularity: str | Any = "weight",
    *,
    batches: Iterable[Any],
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    damping: float = DAMPING,
    block: int = BLOCK,
    seed: int = 0,
) -> Masks:
    """Prune a trained model in place by SparseGPT: dropped weights become 0, kept ones are corrected for the loss.

        masks = supermask.prune_and_correct(model, 0.5, batches=calibration)
        supermask.hold(model, masks)  # to train on; the model is pruned already

    `prune(model, density, "sparsegpt", batches=...)` gives the same masks and leaves the model as it was.

    Args:
        model: any module whose targets are linear layers, transformers' Conv1D, or convolutions that are not
            transposed. Layer after layer, each sees the inputs that the pruned ones before it give.
        density: fraction of each output's weights that is kept, or densities by glob (see `by_glob`).
        granularity: `weight`, or N:M, as `2:4`.
        batches: calibration samples (see `calibration.prune_in_order`). They go through the model once for each layer;
            memory is that of the model, of a batch, and of columns x columns numbers of one layer.
        include: globs of the parameters to mask instead of the default set (see `find_targets`).
        exclude: globs of parameters or modules to leave dense.
        damping: added to the diagonal of the Hessian, in parts of its mean; above 0.
        block: columns whose corrections are passed on together.
        seed: of what the model draws in evaluation mode.

    Raises:
        ValueError: damping or a block that is not above 0, or what `calibration.prune_in_order` refuses. Inputs that
            are NaN or infinite are found when their layer's turn comes, as is a Hessian that has no
            inverse: the layers before it are pruned by then.
    """
    wrong = [f"{name}={value}" for name, value in {"damping": damping, "block": block}.items() if not value > 0]
    if wrong:
        raise ValueError(f"expected damping and block above 0, got {', '.join(wrong)}")
    rule = Rule(SPARSEGPT.name, products, partial(correct, damping=damping, block=block))
    return prune_in_order(
        model, density, rule, granularity, batches=batches, include=include, exclude=exclude, seed=seed
    )
