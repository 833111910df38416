"""Run with: pytest tests/test_tag_augmentation.py - expected values: published ACE-Step v1 trainer, fixed seeds."""

import json
from pathlib import Path

import pytest
import torch

from ace_lora.training.tags import augment_tags

CASES = json.loads((Path(__file__).parents[1] / "golden/transformer/tag_augmentation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden(case):
    torch.manual_seed(case["seed"])
    out = augment_tags(torch.tensor(case["ids"]), dropout=case["dropout"], shuffle=case["shuffle"])
    assert out.tolist() == case["out"] and out.dtype == torch.int64
    assert torch.rand(()).item() == case["next_rand"]


def test_own_generator_leaves_the_global_one_alone():
    torch.manual_seed(0)
    ids = torch.tensor([5, 275, 6, 275, 7, 1])
    first = augment_tags(ids, dropout=0.5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, augment_tags(ids, dropout=0.5, generator=torch.Generator().manual_seed(4)))
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    augment_tags(ids, dropout=0.5, generator=torch.Generator().manual_seed(4))
    assert torch.rand(()) == expected


def test_dropout_one_drops_all_and_another_comma_id():
    assert augment_tags(torch.tensor([5, 275, 6, 1]), dropout=1.0).tolist() == [1]
    out = augment_tags(torch.tensor([5, 9, 6, 1]), dropout=0.0, comma_id=9, generator=torch.Generator().manual_seed(0))
    assert sorted(out.tolist()) == [1, 5, 6, 9]
