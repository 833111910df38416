"""Play songs for the window: `python -m ace_lora.play`, told by lines on its standard input. Imports audio and below.

track     a sound file as samples of one rate, and its outline for drawing
player    what sounds next: position, level, change between two tracks
outputs   the sound device, and one that only keeps time
"""
