"""Hear prompts with and without LoRAs: `python -m ace_lora.preview` renders one song, `… .preview.compare` several
columns of them. Imports v1, comfyui, lora and below.

    settings    how a song is sampled: flags and plan files to settings, all checks
    adapters    LoRAs put into the transformer and taken out again
    render      text encoder, transformer, decoder: one after another, each loaded once
    estimate    time and memory of a rendering, before it begins
    save        waves to WAV, FLAC and MP3
    compare     a plan file to samples and a table beside them
    nearness    how near a sample is to the songs of the training
"""
