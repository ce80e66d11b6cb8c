"""A small instance of every kind of task: a network, data that it can learn, and what to measure them with, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ticket_search import describe_metric


@dataclass(frozen=True)
class Kind:
    """`loss` and `metric` restate in NumPy what a run reports, of all samples: (main output, targets) -> number.

    `own_loss` says that the network gives the loss, so that the restatement is of its logits.
    """

    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Callable[[Any, Any], float]
    metric: Callable[[Any, Any], float]
    named: dict[str, str]
    flags: dict[str, Any] = field(default_factory=dict)


def softmax_loss(logits, targets):
    """Mean over what is not -100; classes last."""
    logits = logits - logits.max(-1, keepdims=True)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return float(-picked[targets != -100].mean())


def share_right(logits, targets):
    counts = targets != -100
    return float(100.0 * (logits.argmax(-1) == targets)[counts].mean())


def sigmoid_loss(logits, targets):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return float(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean())


def r2(outputs, targets):
    from sklearn.metrics import r2_score

    return float(r2_score(targets.reshape(len(targets), -1), outputs.reshape(len(outputs), -1)))


def numbers(count: int = 260, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def regression():
    x = numbers()
    return x, np.stack([x[:, 0] * 2 + 50, x[:, 1] - x[:, 2], x[:, 3] ** 2], 1).astype(np.float32)


def labels():
    x = np.random.default_rng(1).normal(size=(260, 1, 6, 6)).astype(np.float32)
    return x, np.stack([x[:, 0, :3].mean((1, 2)) > 0, x[:, 0, 3:].mean((1, 2)) > 0, x[:, 0, 0, 0] > 0], 1)


def tagged(vocabulary: int = 20, length: int = 7) -> dict[str, Any]:
    generator = np.random.default_rng(2)
    ids = generator.integers(1, vocabulary, (260, length))
    there = np.arange(length) < generator.integers(3, length + 1, (260, 1))
    return {
        "input_ids": ids * there,
        "attention_mask": there.astype(np.int64),
        "labels": np.where(there, ids % 3, -100),
    }


def text(count: int = 260, length: int = 9, vocabulary: int = 12):
    start = np.random.default_rng(3).integers(0, vocabulary, (count, 1))
    ids = (start + 5 * np.arange(length + 1)) % vocabulary
    ids[:, 5] = np.random.default_rng(4).integers(0, vocabulary, count)
    return ids[:, :-1], ids[:, 1:]


def pictures():
    x = np.random.default_rng(5).normal(size=(260, 1, 5, 5)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 0] > 1)


def two_inputs():
    x = numbers()
    return (x[:, :3], x[:, 3:]), (x[:, 0] > x[:, 3]).astype(np.int64)


class Two(nn.Module):
    """Two inputs and, in training, an auxiliary output, as GoogLeNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head, self.side = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, left, right):
        hidden = torch.relu(self.left(left) + self.right(right))
        return (self.head(hidden), self.side(hidden)) if self.training else self.head(hidden)


class Segments(nn.Module):
    """As torchvision's networks for segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return {"out": self.last(hidden), "aux": hidden}


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.cells, self.head = nn.Embedding(12, 10), nn.GRU(10, 14, batch_first=True), nn.Linear(14, 12)

    def forward(self, ids):
        return {"logits": self.head(self.cells(self.table(ids))[0])}


def bert():
    from transformers import BertConfig, BertForTokenClassification

    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForTokenClassification(BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **sizes))


def gpt():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=10, n_embd=12, n_layer=1, n_head=2))


def next_tokens():
    """As Hugging Face's causal models take them: the labels are the tokens themselves, some of which do not count."""
    ids = text()[0]
    padded = np.arange(ids.shape[1]) >= np.random.default_rng(6).integers(4, 10, (len(ids), 1))
    return {"input_ids": ids, "labels": np.where(padded, -100, ids)}


def shifted_loss(logits, targets):
    return softmax_loss(logits[:, :-1], targets[:, 1:])


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))


@describe_metric(direction="lower", unit="mm")
def distance(outputs, targets):
    return (outputs - targets).norm(dim=1)


def huber(outputs, targets):
    return nn.functional.huber_loss(outputs, targets)


def huber_slowly(outputs, targets):
    apart = np.abs(outputs - targets)
    return float(np.where(apart < 1, apart**2 / 2, apart - 0.5).mean())


ACCURACY = {"name": "accuracy", "direction": "higher", "unit": "%"}
R2 = {"name": "r2", "direction": "higher", "unit": ""}
PERPLEXITY = {"name": "perplexity", "direction": "lower", "unit": ""}

KINDS = {
    "classes": Kind(
        lambda: mlp(3), lambda: (numbers(), numbers()[:, :3].argmax(1)), softmax_loss, share_right, ACCURACY
    ),
    "regression": Kind(
        lambda: mlp(3), regression, lambda o, t: float(((o - t) ** 2).mean()), r2, R2, {"loss": "mse"}
    ),
    "one number": Kind(
        lambda: mlp(1), lambda: (numbers(), numbers()[:, 0] * 3), lambda o, t: float(((o[:, 0] - t) ** 2).mean()),
        lambda o, t: float(np.abs(o[:, 0] - t).mean()), {"name": "mae", "direction": "lower", "unit": ""},
        {"loss": "mse", "metric": "mae"},
    ),
    "functions": Kind(
        lambda: mlp(3), regression, huber_slowly, lambda o, t: float(np.linalg.norm(o - t, axis=1).mean()),
        {"name": "distance", "direction": "lower", "unit": "mm"}, {"loss": huber, "metric": distance},
    ),
    "labels": Kind(
        cnn, labels, sigmoid_loss, lambda o, t: float(100.0 * ((o > 0) == (t > 0.5)).mean()), ACCURACY, {"loss": "bce"}
    ),
    "tokens": Kind(bert, tagged, softmax_loss, share_right, ACCURACY, {"lr": 1e-2}),
    "language": Kind(
        Language, text, softmax_loss, lambda o, t: float(np.exp(softmax_loss(o, t))), PERPLEXITY,
        {"metric": "perplexity", "lr": 1e-2},
    ),
    "causal": Kind(
        gpt, next_tokens, shifted_loss, lambda o, t: float(np.exp(shifted_loss(o, t))), PERPLEXITY, {"lr": 1e-2}
    ),
    "pictures": Kind(
        Segments, pictures, lambda o, t: softmax_loss(np.moveaxis(o, 1, -1), t),
        lambda o, t: share_right(np.moveaxis(o, 1, -1), t), ACCURACY,
    ),
    "two": Kind(Two, two_inputs, softmax_loss, share_right, ACCURACY),
}  # fmt: skip
