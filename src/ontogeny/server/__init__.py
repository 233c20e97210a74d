"""Saved models on HTTP: completions, agents, keys, usage, learning that survives. Web libraries are imported here alone."""
