"""Hear a prompt with or without a LoRA: `python -m ace_lora.preview`. Imports v1, lora and below."""
