"""Songs as waveforms: decoding, resampling, and what signal analysis hears. Imports commands and files only."""
