"""DPC-KNN scores written as loops, for the tests of all that use them."""

from __future__ import annotations

import math

import torch


def scores_by_loops(tokens, neighbours):
    count, width = tokens.shape
    distance = [[float((tokens[i] - tokens[j]).norm()) / math.sqrt(width) for j in range(count)] for i in range(count)]
    density = []
    for i in range(count):
        near = sorted(distance[i][j] for j in range(count) if j != i)[:neighbours]
        density.append(math.exp(-sum(d * d for d in near) / len(near)))
    farthest = max(max(row) for row in distance)
    found = []
    for i in range(count):
        denser = [j for j in range(count) if density[j] > density[i]]
        found.append(density[i] * (min(distance[i][j] for j in denser) if denser else farthest))
    return torch.tensor(found)
