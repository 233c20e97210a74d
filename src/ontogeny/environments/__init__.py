"""Environments: one file each, a distribution over tasks; one lifetime is one task."""
