"""ACE-Step v1: its networks and its noise schedule, from the specification alone. Imports model, audio and below."""
