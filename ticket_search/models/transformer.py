"""The blocks of transformers: attention and a perceptron, each with a norm before it and a residual sum around both.

Vaswani et al., Attention Is All You Need, 2017; with the norms first, Radford et al., Language Models are Unsupervised
Multitask Learners, 2019.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .activations import make_activation


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Where it is causal, a token sees itself and those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, t, width] to tokens of the same shape."""
        q, k, v = rearrange(self.qkv(x), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        result: Tensor = self.out(rearrange(mixed, "n h t d -> n t (h d)"))
        return result


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each with a norm before it and a residual sum."""

    def __init__(self, width: int, heads: int, activation: str, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), make_activation(activation), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, t, width] to tokens of the same shape."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result
