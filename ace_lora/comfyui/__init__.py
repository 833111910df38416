"""What ComfyUI makes of a LoRA, a prompt and lyrics: its sampling, its reading of texts and files, workflows for it.

Imports v1, lora, lyrics and below. Written from its published behaviour; no line of it is ComfyUI's.
"""
