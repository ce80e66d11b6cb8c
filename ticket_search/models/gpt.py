"""A small language model: a decoder-only transformer that predicts the next token at every position.

Radford et al., Language Models are Unsupervised Multitask Learners, 2019, without its dropout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .activations import make_activation


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, t, width] to tokens of the same shape."""
        q, k, v = rearrange(self.qkv(x), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out(rearrange(mixed, "n h t d -> n t (h d)"))
        return result


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each with a norm before it and a residual sum."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), make_activation(activation), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, t, width] to tokens of the same shape."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


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
        self.blocks = nn.Sequential(*(Block(width, heads, activation) for _ in range(depth)))
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
