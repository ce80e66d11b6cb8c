"""A masked network in a LightningModule: the Trainer needs no callback and no change.

Run: python examples/lightning_trainer.py          (pip install lightning)
"""

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import supermask


class Digits(lightning.LightningModule):
    """An ordinary classifier, but for one line."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        supermask.hold(self.net, supermask.prune(self.net, density=0.2, allocation="layerwise"))

    def training_step(self, batch):
        """The loss, as ever."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        """Any optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


lightning.seed_everything(0)
x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
x, model = x.float() / 16, Digits()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=5, accelerator="cpu", **quiet)
trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=60, shuffle=True))
accuracy = (supermask.bake(model.net)(x).argmax(1) == y).float().mean()
print(f"accuracy on the training data {accuracy:.3f} with {supermask.masks_of(model.net)}")
supermask.check(model.net)
