"""ToMe, token merging (Bolya et al., arXiv 2210.09461): tokens that are alike are merged inside the vision tower.

In every block, between attention and MLP: tokens are dealt in turn into two sets; every token of the first proposes to
the one of the second whose key (mean over heads) is most similar; the `r` best proposals are merged, as means weighted
by how many tokens are in each already. Attention adds the logarithm of that number to its scores (*proportional
attention*).

Pixel shuffle wants squares of patches in the end, so the things that are merged here are those squares: patch by patch,
by the similarity of their four keys. CLS is never merged.

Axis letters: see `liteframe.baselines.reduced`; ``m`` 1 + patches that are left, ``q`` = s * s patches of a token,
``a`` heads, ``e`` width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from liteframe.baselines.reduced import ReducedEncoder


class ToMeEncoder(ReducedEncoder):
    """The teacher with ToMe in all of its blocks: its own cost shrinks as well.

    The authors merge a constant number in every block, and so does this where it can (`merge_schedule`). Their code
    moves merged tokens to the end of the sequence; here they stay in order, a merged token at the place of the one of
    the second set.
    """

    def kept_tokens(self, frames: Float[Tensor, "b 3 H W"], keep: int) -> Float[Tensor, "b k c"]:
        """See `ReducedEncoder.kept_tokens`."""
        h, w = self.teacher.grid(*frames.shape[-2:])[1:]
        blocks = self.attending_blocks()
        hidden = self.teacher.embed(frames)
        cls = hidden[:, :1]
        side = {"i": self.factor, "j": self.factor}
        tokens = rearrange(
            hidden[:, 1:], "b (h i w j) d -> b (h w) (i j) d", h=h // self.factor, w=w // self.factor, **side
        )
        sizes = torch.ones(tokens.shape[:2], device=tokens.device)
        schedule = merge_schedule(tokens.shape[1], keep, len(blocks))
        for block, merged in zip(blocks, schedule, strict=True):
            sequence = torch.cat([cls, tokens.flatten(1, 2)], dim=1)
            attended, keys = proportional_attention(block, sequence, patch_sizes(sizes, tokens.shape[2]))
            sequence = sequence + block.lambda_1 * attended
            cls, tokens = sequence[:, :1], sequence[:, 1:].unflatten(1, tokens.shape[1:3])
            if merged:
                metric = keys[:, :, 1:].mean(dim=1).unflatten(1, tokens.shape[1:3]).flatten(2)
                tokens, sizes = merge(tokens, sizes, metric, merged)
            sequence = torch.cat([cls, tokens.flatten(1, 2)], dim=1)
            sequence = sequence + block.lambda_2 * block.dropout(block.mlp(block.layernorm_after(sequence)))
            cls, tokens = sequence[:, :1], sequence[:, 1:].unflatten(1, tokens.shape[1:3])
        finished = self.teacher.finish(torch.cat([cls, tokens.flatten(1, 2)], dim=1))
        return finished[:, 1:].reshape(len(frames), keep, -1)

    def flops(self, height: int, width: int, num_frames: int) -> int:
        """As `TeacherEncoder.flops`, with the patches that each block really reads."""
        d, mlp = self.feature_dim, self.teacher.tower.config.intermediate_size
        tokens, patches = self.tokens_of_frame(height, width), self.factor**2
        keep = self.grid(height, width)[0]
        total = 2 * tokens * patches * 3 * self.patch_size**2 * d
        for merged in merge_schedule(tokens, keep, len(self.teacher.blocks)):
            before, after = tokens * patches + 1, (tokens - merged) * patches + 1
            total += 2 * before * d * (4 * d + 2 * before) + 2 * after * d * 2 * mlp
            tokens -= merged
        return num_frames * total


def merge_schedule(tokens: int, keep: int, blocks: int) -> list[int]:
    """How many tokens each block merges away: equal shares as far as it can, and `keep` are left at the end.

    One matching merges half of the tokens at most. Where equal shares would leave the last blocks more than that, the
    earlier ones merge more; where even halving in every block is not enough, the last block matches several times.
    """
    shares = []
    for left in range(blocks, 0, -1):
        even = tokens - -(-(tokens - keep) // left)
        after = max(-(-tokens // 2), min(even, keep << (left - 1))) if left > 1 else keep
        shares.append(tokens - after)
        tokens = after
    return shares


def merge(
    tokens: Float[Tensor, "b n q d"], sizes: Float[Tensor, "b n"], metric: Float[Tensor, "b n x"], merged: int
) -> tuple[Float[Tensor, "b k q d"], Float[Tensor, "b k"]]:
    """Bipartite soft matching: `merged` tokens of the even positions go into tokens of the odd positions.

    More than half are merged in several matchings, on metrics that are merged as the tokens are.

    Args:
        sizes: how many tokens each one stands for.
        metric: what similarity (cosine) is measured on.
        merged: less than n.
    """
    while merged:
        count = min(merged, tokens.shape[1] // 2)
        unit = nn.functional.normalize(metric.float(), dim=-1)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(dim=-1)
        leaving = best.argsort(dim=-1, descending=True, stable=True)[:, :count]
        source, target = 2 * leaving, 2 * partner.gather(1, leaving) + 1
        tokens = _moved(tokens.flatten(2), sizes, source, target).unflatten(2, tokens.shape[2:])
        metric = _moved(metric, sizes, source, target)
        sizes = _without(source, sizes.scatter_add(1, target, sizes.gather(1, source))[..., None])[..., 0]
        merged -= count
    return tokens, sizes


def _moved(
    values: Float[Tensor, "b n x"],
    sizes: Float[Tensor, "b n"],
    source: Int64[Tensor, "b r"],
    target: Int64[Tensor, "b r"],
) -> Float[Tensor, "b k x"]:
    """Means weighted by `sizes`, of each target with its sources; summed in float32."""
    weighted = values.float() * sizes[..., None]
    index = target[..., None].expand(-1, -1, values.shape[2])
    summed = weighted.scatter_add(1, index, weighted.gather(1, source[..., None].expand_as(index)))
    total = sizes.scatter_add(1, target, sizes.gather(1, source))
    return _without(source, summed / total[..., None]).to(values.dtype)


def _without(source: Int64[Tensor, "b r"], values: Float[Tensor, "b n x"]) -> Float[Tensor, "b k x"]:
    """What is left, in order, when `source` is gone."""
    stays = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device).scatter(1, source, False)
    return values[stays].unflatten(0, (len(values), -1))


def patch_sizes(sizes: Float[Tensor, "b n"], patches: int) -> Float[Tensor, "b m"]:
    """The size of CLS, which is 1, and of each of a token's `patches`."""
    return torch.cat([torch.ones_like(sizes[:, :1]), sizes.repeat_interleave(patches, dim=1)], dim=1)


def proportional_attention(
    block: Any, hidden: Float[Tensor, "b m d"], sizes: Float[Tensor, "b m"]
) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b a m e"]]:
    """A block's attention with log `sizes` added to the scores of each key; and its keys.

    Args:
        block: an ``InternVLVisionLayer``; its first norm is applied here.
    """
    attention = block.attention
    states = block.layernorm_before(hidden)
    query = attention.q_norm(attention.q_proj(states))
    keys = attention.k_norm(attention.k_proj(states))
    query, keys, values = (
        rearrange(x, "b m (a e) -> b a m e", a=attention.num_heads) for x in (query, keys, attention.v_proj(states))
    )
    bias = sizes.log().to(query.dtype)[:, None, None] if bool((sizes > 1).any()) else None
    mixed = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=attention.scale)
    mixed = attention.projection_dropout(attention.projection_layer(rearrange(mixed, "b a m e -> b m (a e)")))
    return mixed, keys
