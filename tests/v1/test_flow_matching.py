from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ace_lora.v1.flow_matching import (
    add_noise,
    build_schedule,
    denoising_loss,
    sample_timestep_indices,
    timestep_indices,
)
from tests.golden_recipe import GOLDEN, float_input, prefix_mask


def test_schedule_golden() -> None:
    golden, schedule = load_file(GOLDEN / "scheduler_shift3.safetensors"), build_schedule(3.0)
    assert torch.equal(schedule.sigmas, golden["sigmas"])
    assert torch.equal(schedule.timesteps, golden["timesteps"])
    assert float(schedule.timesteps[0]) == 1000


def test_timestep_sampling_golden() -> None:
    golden = json.loads((GOLDEN / "timestep_sampling_shift3.json").read_text(encoding="utf-8"))
    timesteps = build_schedule(golden["shift"]).timesteps
    for draw in golden["draws"]:
        torch.manual_seed(draw["seed"])
        indices = sample_timestep_indices(draw["bsz"])
        assert indices.tolist() == draw["index"]
        assert timesteps[indices].tolist() == draw["timestep"]
        own = torch.Generator().manual_seed(draw["seed"])
        assert sample_timestep_indices(draw["bsz"], own).tolist() == draw["index"]
    edges = golden["edges"]
    assert timestep_indices(torch.tensor(edges["z"])).tolist() == edges["index"]


def test_velocity_form_is_the_published_loss() -> None:
    latents, noise, velocity = (float_input(key, (2, 8, 16, 9)) for key in "abc")
    sigma, mask = torch.tensor([0.9, 0.2]), prefix_mask([9, 4], 9)
    noised = add_noise(latents, noise, sigma)
    predicted = noised - sigma.view(2, 1, 1, 1) * velocity
    wide = mask[:, None, None]
    published = ((predicted * wide - latents * wide).square().mean((1, 2, 3)) * mask.mean(1)).mean()
    found = denoising_loss(velocity, noise, latents, sigma, mask, "reference")
    assert float(found) == pytest.approx(float(published), rel=1e-6)


def test_padded_items_count_as_they_would_alone() -> None:
    latents, noise, velocity = (float_input(key, (2, 8, 16, 9)) for key in "abc")
    sigma, mask = torch.tensor([0.9, 0.2]), prefix_mask([9, 4], 9)
    velocity[1, ..., 4:] = torch.inf  # whatever padding holds
    singles = [
        denoising_loss(*(x[i : i + 1, ..., :n] for x in (velocity, noise, latents)), sigma[i : i + 1])
        for i, n in enumerate((9, 4))
    ]
    found = denoising_loss(velocity, noise, latents, sigma, mask)
    assert float(found) == pytest.approx(float(sum(singles)) / 2, rel=1e-6)


def test_reduced_precision_latents_are_noised_in_float32() -> None:
    latents = torch.ones(1, 8, 16, 2, dtype=torch.bfloat16)
    assert add_noise(latents, latents, torch.tensor([0.3])).dtype == torch.float32
