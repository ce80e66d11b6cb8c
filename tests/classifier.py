"""A module of Lightning that holds masks."""

from __future__ import annotations

import lightning.pytorch as lightning
import torch
from held import assert_held
from networks import perceptron
from torch import Tensor, nn

import supermask


class Classifier(lightning.LightningModule):
    """A network that holds masks, looked at after every step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = perceptron()
        self.masks = supermask.prune(self.net, 0.4)
        supermask.hold(self.net, self.masks)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.net(batch[0])

    def on_train_batch_end(self, *args) -> None:
        assert_held(self.net, self.masks)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.1, weight_decay=0.5)
