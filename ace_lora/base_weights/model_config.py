"""The `config.json` beside a weight file. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.files import UnusableFile, read_json


def read_model_config(folder: Path) -> dict[str, Any]:
    """The settings that the weights in `folder` belong to. Raises WrongInput when the file is missing or damaged."""
    path = Path(folder) / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise WrongInput(f"'{path}' is missing. It says how the weights beside it are used. Download it.") from None
    except UnusableFile as error:
        raise WrongInput(f"{error} Delete it and download it again.") from None
    if not isinstance(config, dict):
        raise WrongInput(f"'{path}' holds {type(config).__name__}, a JSON object was expected. Download it again.")
    return config
