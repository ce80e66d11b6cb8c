"""Small networks for tests, each with something that trips masks up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def start_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights that training might have begun from: near those of the model, some of them of the other sign."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: tensor + tensor.detach().std(correction=0) * torch.randn(tensor.shape, generator=generator).to(tensor)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


class Tied(nn.Module):
    """An embedding tied with the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.embedding(x))))


class Residual(nn.Module):
    """Convolutions with batch norm, a residual sum, a grouped convolution and a linear head."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=2), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.block(x)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Multi-head attention, whose output projection is read without being called."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Recurrent(nn.Module):
    """An LSTM in both directions, two layers and a projection, then a GRU cell stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, proj_size=4, batch_first=True)
        self.cell = nn.GRUCell(8, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 7)
        for step in self.lstm(x)[0].unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def transposed() -> nn.Sequential:
    """Transposed convolutions, one of them grouped: their weights have the outputs in the second dimension."""
    return nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Flatten(),
        nn.Linear(6 * 10 * 10, 3),
    )  # fmt: skip


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


# Each network with an input for it.
NETWORKS = {
    "perceptron": (perceptron, lambda: torch.randn(5, 12)),
    "tied": (Tied, lambda: torch.randint(0, 11, (5, 4))),
    "residual": (Residual, lambda: torch.randn(5, 1, 6, 6)),
    "attention": (Attention, lambda: torch.randn(5, 4, 8)),
    "recurrent": (Recurrent, lambda: torch.randn(5, 4, 5)),
    "transposed": (transposed, lambda: torch.randn(5, 3, 4, 4)),
}
