"""Trees of tokens: parents, levels and ancestors of their nodes.

A tree is given by its `parents`, [B, n]: for each node the index of its parent, or −1 if the node
follows the text itself. Nodes are listed level by level, so parents come before their children.
"""

import torch
from torch import Tensor


def node_paths(parents: Tensor) -> list[list[list[int]]]:
    """The path to each node of each row: its ancestors from the first level down, then itself.

    parents: [B, n] int64, on the host.
    """
    return [_paths_of_row(row) for row in parents.tolist()]


def _paths_of_row(parents: list[int]) -> list[list[int]]:
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        before = paths[parent] if parent >= 0 else []
        paths.append([*before, node])
    return paths


def depths(parents: Tensor) -> Tensor:
    """The level of each node, 1 where it follows the text. [B, n] → [B, n] int64."""
    lengths = [[len(path) for path in row] for row in node_paths(parents)]
    return torch.tensor(lengths, dtype=torch.int64).reshape(parents.shape)


def ancestor_mask(parents: Tensor) -> Tensor:
    """Whether node j is node i or one of its ancestors, [B, n] → [B, n (i), n (j)] bool."""
    batch, n = parents.shape
    masks = []
    for row in parents.tolist():
        mask: list[list[bool]] = []
        for node, parent in enumerate(row):
            leads_here = list(mask[parent]) if parent >= 0 else [False] * n
            leads_here[node] = True
            mask.append(leads_here)
        masks.append(mask)
    return torch.tensor(masks, dtype=torch.bool).reshape(batch, n, n)
