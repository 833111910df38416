"""LoRA: configuration, files, layers in the model. Imports commands and files; torch at the top of `layers` only."""
