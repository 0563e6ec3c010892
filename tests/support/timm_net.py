"""A Vision Transformer in plain torch whose parameters bear timm's names."""

from typing import Any

import torch
from torch import nn


class Attention(nn.Module):
    """Self-attention by one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    """A factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Any) -> Any:
        return x * self.gamma


class Block(nn.Module):
    """Attention, then an MLP."""

    def __init__(self, width: int, heads: int, bias: bool, scale: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, bias)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})
        self.ls1, self.ls2 = (Scale(width) if scale else nn.Identity() for _ in range(2))

    def forward(self, x: Any) -> Any:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))))


class Net(nn.Module):
    """The whole network."""

    def __init__(
        self,
        *,
        size: tuple[int, int],
        patch: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        classes: int = 5,
        pool: str = "token",
        token: bool = True,
        embed_class: bool = True,
        fc_norm: bool = False,
        scale: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        count = (size[0] // patch[0]) * (size[1] // patch[1])
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, count + (token and embed_class), width))
        self.blocks = nn.ModuleList(Block(width, heads, bias, scale) for _ in range(depth))
        self.norm = nn.Identity() if fc_norm else nn.LayerNorm(width, eps=1e-6)
        self.fc_norm = nn.LayerNorm(width, eps=1e-6) if fc_norm else nn.Identity()
        self.head = nn.Linear(width, classes) if classes else nn.Identity()
        self.pool, self.embed_class = pool, embed_class

    def forward(self, x: Any) -> Any:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        first = [] if self.cls_token is None else [self.cls_token.expand(len(x), -1, -1)]
        x = x if self.embed_class else x + self.pos_embed
        x = torch.cat([*first, x], 1)
        x = x + self.pos_embed if self.embed_class else x
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        x = x[:, 0] if self.pool == "token" else x[:, len(first) :].mean(1)
        return self.head(self.fc_norm(x))
