"""A base model that fits a test: random weights in the published layout. `python -m ace_lora.tiny_base DIR`.

Imports commands and files only.
"""
