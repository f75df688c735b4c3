"""A small transformer for sequences of tokens, with outputs per token or per sequence."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from regrow.models import register_model


class Attention(nn.Module):
    """Multi-head self-attention, optionally causal."""

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, length, dim] to the same shape."""
        num, length, dim = x.shape
        q, k, v = (
            part.view(num, length, self.heads, dim // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(num, length, dim))
        return projected


class Block(nn.Module):
    """Attention and a feed-forward part, each with a norm before it and a shortcut around it."""

    def __init__(self, dim: int, heads: int, hidden: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim)
        self.expand, self.contract = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, length, dim] to the same shape."""
        x = x + self.attention(self.norm1(x))
        shortened: Tensor = self.contract(functional.gelu(self.expand(self.norm2(x))))
        return x + shortened


class Transformer(nn.Module):
    """Token and position embeddings, blocks, a norm and a linear layer."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        outputs: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        causal: bool,
        pooled: bool,
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.tokens = nn.Embedding(vocabulary, dim)
        self.places = nn.Embedding(length, dim)
        blocks = (Block(dim, heads, hidden, causal=causal) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, length] to logits [N, length, outputs], or [N, outputs] if ``pooled``."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.norm(self.blocks(x))
        logits: Tensor = self.head(x.mean(1) if self.pooled else x)
        return logits


@register_model("transformer", family="transformer")
def transformer(
    *,
    vocabulary: int,
    length: int,
    outputs: int,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    hidden: int = 256,
    of: Literal["next", "token", "sequence"] = "next",
) -> nn.Module:
    """Build a pre-norm transformer.

    ``of`` sets what each output is about: ``next``, the token after each one, from the tokens up to
    it (causal attention); ``token``, each token, from the whole sequence; ``sequence``, the whole
    sequence, by the mean over its tokens. Methods of the scope ``linear`` prune the ``hidden``
    units of the feed-forward parts.

    Reference: Vaswani et al., Attention Is All You Need, NeurIPS 2017, arXiv:1706.03762; norms
    before each part as in Radford et al., 2019.
    """
    return Transformer(
        vocabulary=vocabulary,
        length=length,
        outputs=outputs,
        dim=dim,
        depth=depth,
        heads=heads,
        hidden=hidden,
        causal=of == "next",
        pooled=of == "sequence",
    )
