"""What the flat scripts share: model, audio, lyrics, captions, records and checkpoints of ACE-Step v1 LoRA training."""
