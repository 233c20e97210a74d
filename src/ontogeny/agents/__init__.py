"""Agents: one file each. How a genome becomes a life."""
