"""A vision transformer for small images.

Dosovitskiy et al., An Image is Worth 16x16 Words, 2020; the tiny width of Touvron et al., Training Data-Efficient Image
Transformers, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from .transformer import Block


class ViT(nn.Module):
    """Patches, a class token, learned positions, blocks, a norm and a linear head."""

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        activation: str,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
    ) -> None:
        super().__init__()
        channels, height, width_of_image = input_shape
        # Patches of 4 pixels make 49 tokens of a 28x28 image; the largest divisor of both sides up to that.
        self.patch = max(size for size in (1, 2, 3, 4) if math.gcd(height, width_of_image) % size == 0)
        tokens = (height // self.patch) * (width_of_image // self.patch)
        self.embedding = nn.Linear(channels * self.patch**2, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, height, width]."""
        patches = rearrange(x, "n c (h p) (w q) -> n (h w) (p q c)", p=self.patch, q=self.patch)
        tokens = torch.cat([repeat(self.token, "1 1 d -> n 1 d", n=len(x)), self.embedding(patches)], 1)
        tokens = self.blocks(tokens + self.position)
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits


def vit_tiny(input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "gelu") -> ViT:
    """ViT-Tiny (width 192, depth 12, 3 heads) with patches of 4 pixels."""
    return ViT(input_shape, classes, activation)
