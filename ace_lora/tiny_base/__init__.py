"""A base model that fits a test: random weights in the published layout. `python -m ace_lora.tiny_base DIR`.

Imports the mel filters of v1, the structure tags of the lyrics and the lowest floor; PyTorch is not needed.
"""
