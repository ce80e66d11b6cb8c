"""A small language model: a decoder-only transformer that predicts the next token at every position.

Radford et al., Language Models are Unsupervised Multitask Learners, 2019, without its dropout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .transformer import Block


class GPT(nn.Module):
    """Token and position embeddings, blocks, a norm and a linear head for each position.

    Raises:
        ValueError: samples that are not sequences of tokens, or a width that the heads do not divide.
    """

    def __init__(
        self, input_shape: Sequence[int], classes: int, activation: str, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(f"a language model takes sequences of tokens [length], the data has {list(input_shape)}")
        if width % heads:
            raise ValueError(f"width {width}: expected a multiple of the {heads} heads")
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Parameter(torch.randn(input_shape[0], width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, activation, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, t, classes] of the token after each of the tokens [n, t]; t is at most the length built for."""
        hidden = self.blocks(self.tokens(x) + self.positions[: x.shape[1]])
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def gpt_tiny(
    input_shape: Sequence[int] = (64,),
    classes: int = 103,
    activation: str = "gelu",
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
) -> GPT:
    """A GPT of width 64 with 2 blocks of 4 heads; `classes` is the size of the vocabulary."""
    return GPT(input_shape, classes, activation, width, depth, heads)
