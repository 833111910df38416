"""LoRA: what a configuration and a file say, and the layers in a model. Imports commands and files.

config    rank, alpha, rsLoRA and layers, from JSON; the scale that follows
keys      how other programs name the tensors
file      one reader and one writer of LoRA files, and what each player makes of them
factors   sums, other ranks and scales of B A                       (torch at its top)
layers    the adapter in a model, and a file as its beginning       (torch at its top)
"""
