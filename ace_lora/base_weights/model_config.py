"""The `config.json` beside a weight file. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.files import read_text


def read_model_config(folder: Path) -> dict[str, Any]:
    """The settings that the weights in `folder` belong to. Raises WrongInput when the file is missing or damaged."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(read_text(path))
    except FileNotFoundError:
        raise WrongInput(f"'{path}' is missing. It says how the weights beside it are used. Download it.") from None
    except ValueError as error:
        raise WrongInput(
            f"'{path}' is damaged ({error}). A JSON object was expected. Delete it and download it again."
        ) from None
    if not isinstance(config, dict):
        raise WrongInput(f"'{path}' holds {type(config).__name__}, a JSON object was expected. Download it again.")
    return config
