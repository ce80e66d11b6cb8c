"""Networks and data of one's own, for tasks that are no classification of images: named `own_tasks:...` in a shell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def regression_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 2))


def regression_data() -> tuple[Tensor, Tensor]:
    x = _numbers(200, 6)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2:].sum(1).sin()], 1)


def labels_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def labels_data() -> tuple[Tensor, Tensor]:
    x = _numbers(200, 1, 8, 8)
    return x, torch.stack([x.mean((1, 2, 3)) > 0, x[:, 0, 0].mean(1) > 0, x.amax((1, 2, 3)) > 2.5], 1).float()


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=12, num_labels=2, **sizes))


def sentences() -> dict[str, Tensor]:
    tokens = torch.randint(1, 20, (200, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.randint(4, 13, (200, 1), generator=torch.Generator().manual_seed(1))).long()
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": (tokens[:, 0] > 10).long()}


class TwoHeads(nn.Module):
    """The classes, and beside them a guess of the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.classes, self.pixel = nn.Linear(32, 10), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x)
        return self.classes(hidden), self.pixel(hidden)


def two_heads() -> nn.Module:
    return TwoHeads()


def joint_loss(outputs: Any, y: Tensor) -> Tensor:
    classes, pixel = outputs
    return nn.functional.cross_entropy(classes, y) + 0.1 * pixel.square().mean()
