"""Makes the environment that runs everything: standard library only, because it runs before anything is installed."""
