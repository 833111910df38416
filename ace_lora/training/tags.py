"""Shuffling and dropping of a prompt's tags on its token ids, so that a LoRA does not depend on their order.

The arithmetic and the order of the random draws are those of ACE-Step v1's trainer; the goldens fix both.
"""

from __future__ import annotations

import torch

UMT5_COMMA_ID = 275


def augment_tags(
    token_ids: torch.Tensor,
    *,
    dropout: float,
    shuffle: bool = True,
    comma_id: int = UMT5_COMMA_ID,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Ids [Lt] int64 of a prompt, the last one ending the sequence, with shuffled tags, each dropped with `dropout`.

    Tags are the runs of ids between commas; empty ones vanish. The last id is kept as it is. When every tag is
    dropped only that remains. Without shuffle and dropout the ids come back unchanged.
    """
    if not shuffle and dropout <= 0:
        return token_ids
    ids = token_ids.tolist()
    tags: list[list[int]] = [[]]
    for token in ids[:-1]:
        if token == comma_id:
            tags.append([])
        else:
            tags[-1].append(token)
    tags = [tag for tag in tags if tag]
    if shuffle:
        tags = [tags[index] for index in torch.randperm(len(tags), generator=generator).tolist()]
    if dropout > 0:
        # One draw per tag in the shuffled order; strictly above, so that dropout 1 drops every tag.
        tags = [tag for tag in tags if torch.rand((), generator=generator).item() > dropout]
    joined: list[int] = []
    for tag in tags:
        if joined:
            joined.append(comma_id)
        joined.extend(tag)
    return torch.tensor([*joined, *ids[-1:]], dtype=token_ids.dtype)
