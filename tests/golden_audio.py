"""The formulas that the golden audio data were made with, shared by the tests that compare with them.

`normal`, `weight` and `audio` are deterministic formulas; a digest is a fingerprint of an array too large to store.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden" / "audio"


def golden_json(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def golden_tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def normal(name: str, shape) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(int(np.prod(shape)), dtype=np.float32).reshape(shape)


def weight(name: str, shape) -> torch.Tensor:
    """The formula weight of one parameter, float32."""
    values = normal(name, tuple(shape))
    if len(shape) >= 2:
        values = values * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    elif name.rsplit(".", 1)[-1] == "weight":
        values = 1 + np.float32(0.1) * values
    else:
        values = np.float32(0.1) * values
    return torch.from_numpy(values.astype(np.float32))


def weights(shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: weight(name, shape) for name, shape in shapes.items()}


def audio(recipe: dict[str, Any]) -> np.ndarray:
    """float32 [C, N] of an audio input."""
    channels, samples, rate = recipe["channels"], recipe["samples"], recipe["rate"]
    noise = normal("input:" + recipe["name"], (channels, samples)).astype(np.float64)
    n = np.arange(samples)
    c = np.arange(1, channels + 1)[:, None]
    values = 0.30 * np.sin(2 * np.pi * 220 * c * n / rate) + 0.15 * np.sin(2 * np.pi * 3000 * c * n / rate)
    values = recipe["amp"] * (values + 0.05 * noise)
    if recipe.get("shaped"):
        values = values * (0.1 + 0.9 * n / samples) + 0.05
    return values.astype(np.float32)


def assert_close(actual: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray, tolerance: float) -> None:
    """Relative to the length of the whole array, as the golden data state their tolerances."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)
    assert error <= tolerance, f"relative error {error:.2e}, at most {tolerance:.0e} allowed"


def assert_digest(actual: torch.Tensor | np.ndarray, digest: dict[str, Any], key: str, tolerance: float) -> None:
    values = np.asarray(actual, dtype=np.float64)
    assert list(values.shape) == digest["shape"]
    flat = values.reshape(-1)
    length = digest["l2"]
    # A projection on normal numbers has the length of the vector itself, so one allowance serves all sums.
    allowed = tolerance * max(length, 1e-30)
    assert abs(np.linalg.norm(flat) - length) <= allowed
    projection = float(flat @ normal("digest:" + key, (flat.size,)).astype(np.float64))
    assert abs(projection - digest["proj"]) <= 4 * allowed, (projection, digest["proj"], allowed)
    assert abs(flat.mean() - digest["mean"]) * np.sqrt(flat.size) <= allowed
    assert abs(flat.std() - digest["std"]) * np.sqrt(flat.size) <= allowed
    largest = max(abs(digest["min"]), abs(digest["max"]), 1e-30)
    for value, expected in ((flat.min(), digest["min"]), (flat.max(), digest["max"])):
        assert abs(value - expected) <= 10 * tolerance * largest
    np.testing.assert_allclose(flat[:8], digest["first8"], rtol=0, atol=10 * tolerance * largest)
    np.testing.assert_allclose(flat[-8:], digest["last8"], rtol=0, atol=10 * tolerance * largest)
