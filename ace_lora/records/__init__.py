"""What preprocessing leaves of a song and training reads. Imports commands, files, songs and the lyrics wing."""
