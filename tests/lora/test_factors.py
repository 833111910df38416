"""Run with: pytest tests/lora/test_factors.py"""

import pytest
import torch

from ace_lora.lora.factors import best_factors, folded, padded, weighted_sum


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 7, generator=generator), torch.randn(5, 4, generator=generator)


def test_the_nearest_product_and_its_share_of_the_norm(pair):
    a, b = pair
    values = torch.linalg.svdvals(b @ a)
    for rank in (1, 2, 3):
        new_a, new_b, kept = best_factors(a, b, rank)
        assert new_a.shape == (rank, 7) and new_b.shape == (5, rank) and new_a.dtype == a.dtype
        assert float((new_b @ new_a - b @ a).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-5)
        assert kept == pytest.approx(float(values[:rank].norm() / values.norm()), rel=1e-6)
    assert best_factors(a, b, 4) == (a, b, 1.0) and best_factors(a, b, 9)[0] is a
    assert (
        best_factors(a, b, lambda values: len(values) - 2, (torch.bfloat16, torch.float32))[0].dtype == torch.bfloat16
    )


def test_a_rank_above_the_widths_ends_at_the_widths():
    a, b = torch.randn(9, 3), torch.randn(5, 9)
    new_a, new_b, kept = best_factors(a, b, 6)
    assert len(new_a) == 3 and kept == 1.0
    torch.testing.assert_close(new_b @ new_a, b @ a)


def test_zero_stays_zero():
    new_a, new_b, kept = best_factors(torch.zeros(3, 4), torch.zeros(5, 3), 1)
    assert not (new_b @ new_a).any() and kept == 1.0


def test_folding_is_exact_for_powers_of_two_and_rounds_once_else():
    b = torch.randn(5, 4).bfloat16()
    assert folded(b, 1.0) is b
    assert torch.equal(folded(b, 0.125).float() * 8, b.float())
    assert torch.equal(folded(b, 0.3), (b.float() * 0.3).bfloat16())


def test_padding_changes_no_product(pair):
    a, b = padded(*pair, 6)
    assert a.shape == (6, 7) and b.shape == (5, 6)
    assert torch.equal(a[:4], pair[0]) and not a[4:].any() and not b[:, 4:].any()
    assert padded(*pair, 4)[0] is pair[0]


def test_a_weighted_sum_adds_products(pair):
    a, b = pair
    other_a, other_b = torch.randn(2, 7), torch.randn(5, 2)
    sum_a, sum_b = weighted_sum([(a, b, 0.5), (other_a, other_b, -2.0)])
    assert sum_a.shape == (6, 7)
    torch.testing.assert_close(sum_b @ sum_a, 0.5 * b @ a - 2 * other_b @ other_a)
    halves = weighted_sum([(a.bfloat16(), b.bfloat16(), 0.3)])
    assert halves[0].dtype == torch.bfloat16 and halves[1].dtype == torch.float32
    assert weighted_sum([(a.bfloat16(), b, 1.0), (a, b, 1.0)])[0].dtype == torch.float32
