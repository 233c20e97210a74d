"""Agents written by hand so that what a test should find in them is known: one file each, its `TRUTH` beside it."""
