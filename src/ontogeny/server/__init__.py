"""Saved models on HTTP: completions, agents, keys, usage, learning that survives. Only here are web libraries used."""
