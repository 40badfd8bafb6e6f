"""ToMe against the paper's rule, written as loops, and against the tower itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from liteframe.baselines import build_method
from liteframe.baselines.tome import merge, merge_schedule
from liteframe.encoders import EncoderSource
from tiny_internvl import make_config, make_model


def match_by_loops(tokens, sizes, metric, merged):
    """Bipartite soft matching of one image: lists in, lists out."""
    count = len(tokens)
    proposals = []
    for a in range(0, count, 2):
        similar = [float(F.cosine_similarity(metric[a], metric[b], dim=0)) for b in range(1, count, 2)]
        best = max(range(len(similar)), key=lambda at: similar[at])
        proposals.append((similar[best], a, 2 * best + 1))
    groups = {at: [at] for at in range(count)}
    for _, a, b in sorted(proposals, key=lambda proposal: -proposal[0])[:merged]:
        groups[b] += groups.pop(a)
    out, out_sizes = [], []
    for at in sorted(groups):
        total = sum(float(sizes[member]) for member in groups[at])
        out.append(sum(tokens[member] * float(sizes[member]) for member in groups[at]) / total)
        out_sizes.append(total)
    return out, out_sizes


@pytest.mark.parametrize(("count", "merged"), [(8, 1), (8, 4), (9, 4), (2, 1), (16, 5)])
def test_one_matching_is_that_of_the_paper(count, merged):
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randn(2, count, 4, 6, generator=generator)
    metric = torch.randn(2, count, 5, generator=generator)
    sizes = torch.randint(1, 4, (2, count), generator=generator).float()
    kept, kept_sizes = merge(tokens, sizes, metric, merged)
    for image in range(2):
        expected, expected_sizes = match_by_loops(tokens[image], sizes[image], metric[image], merged)
        torch.testing.assert_close(kept[image], torch.stack(expected))
        assert kept_sizes[image].tolist() == expected_sizes


def test_merging_all_is_the_weighted_mean():
    tokens, sizes = torch.randn(1, 7, 4, 3), torch.arange(1.0, 8)[None]
    kept, total = merge(tokens, sizes, torch.randn(1, 7, 5), 6)
    torch.testing.assert_close(kept[0, 0], (tokens[0] * sizes[0, :, None, None]).sum(0) / 28)
    assert total.tolist() == [[28.0]]


@pytest.mark.parametrize(
    ("tokens", "keep", "blocks", "expected"),
    [
        (256, 16, 24, [10] * 24),
        (16, 1, 8, [2, 2, 2, 2, 2, 2, 2, 1]),
        (16, 16, 8, [0] * 8),
        (16, 1, 4, [8, 4, 2, 1]),  # equal shares would leave the last block more than half
        (16, 1, 2, [8, 7]),  # two halvings are not enough: the last block matches more than once
    ],
)
def test_the_schedule(tokens, keep, blocks, expected):
    assert merge_schedule(tokens, keep, blocks) == expected


def test_the_tower_against_loops():
    """Two blocks with merging between attention and MLP, one frame, written out patch by patch."""
    tower = make_model(make_config(image_size=(112, 112))).model.vision_tower
    encoder = build_method("tome:tokens=4", EncoderSource(tower))
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        hidden = tower.embeddings(pixels)[0]
        cls, patches = hidden[0], hidden[1:].reshape(8, 8, -1)
        tokens = [patches[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(4, -1) for r in range(4) for c in range(4)]
        sizes = [1.0] * 16
        for block, merged in zip(tower.encoder.layer, (8, 4), strict=True):
            states = block.layernorm_before(torch.cat([cls[None], *tokens]))
            bias = torch.tensor([1.0] + [size for size in sizes for _ in range(4)]).log()
            mixed, keys = [], []
            for head in range(2):
                at = slice(16 * head, 16 * (head + 1))
                q, k, v = (getattr(block.attention, f"{x}_proj")(states)[:, at] for x in "qkv")
                mixed.append(torch.softmax(q @ k.T / 4 + bias, dim=-1) @ v)
                keys.append(k)
            after = torch.cat([cls[None], *tokens])
            after = after + block.lambda_1 * block.attention.projection_layer(torch.cat(mixed, -1))
            metric = ((keys[0] + keys[1]) / 2)[1:].reshape(len(tokens), -1)
            cls, tokens = after[0], after[1:].reshape(len(tokens), 4, -1)
            tokens, sizes = match_by_loops(tokens, sizes, metric, merged)
            after = torch.cat([cls[None], *tokens])
            after = after + block.lambda_2 * block.mlp(block.layernorm_after(after))
            cls, tokens = after[0], list(after[1:].reshape(len(tokens), 4, -1))
    assert len(tokens) == 4
    # 1e-4: attention adds in another order.
    expected = torch.stack(tokens).reshape(4, 2, 2, 32)
    torch.testing.assert_close(encoder.encode(pixels).features[0], expected, atol=1e-4, rtol=1e-4)


def test_flops_are_those_that_torch_counts():
    tower = make_model(make_config(image_size=(112, 112))).model.vision_tower
    encoder = build_method("tome:tokens=4", EncoderSource(tower))
    # torch counts the products of attention only where it computes them one by one.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        encoder(torch.randn(3, 1, 3, 112, 112))
    # What torch counts besides: the similarities of the matchings.
    width = 4 * 16
    matching = 3 * 2 * width * (8 * 8 + 4 * 4)
    assert counter.get_total_flops() - matching == encoder.flops(112, 112, 3)
