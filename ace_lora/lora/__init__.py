"""LoRA: configuration, layers and files. Imports commands and files; torch only inside functions."""
