"""Prompts and lyrics asked of models. Imports lyrics, audio and below."""
