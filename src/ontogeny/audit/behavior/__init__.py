"""Behaviour that others logged: choices read from a file, staying and its regression, models by likelihood."""
