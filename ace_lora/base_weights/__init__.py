"""The published weights: which parts there are, where they lie, how they come here and how they are loaded.

Imports the lowest floor (commands, files) and no other wing. `python -m ace_lora.base_weights` says what is there.
"""
