"""LoRA: what a configuration and a file say, and the layers in a model. Imports commands and files.

config    rank, alpha, rsLoRA and layers, from JSON
keys      how other programs name the tensors
file      one reader and one writer of LoRA files
scales    how strong a LoRA is, wherever that is written
clients   files for the programs that play them
factors   sums, other ranks and scales of B A                       (torch at its top)
layers    the adapter in a model, and a file as its beginning       (torch at its top)
"""
