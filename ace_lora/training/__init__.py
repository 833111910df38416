"""From records to a LoRA. `run.py` holds the loop. Imports v1, model, records, lora and below."""
