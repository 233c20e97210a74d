"""Agents, one file each: how a genome becomes an agent that acts and learns within a lifetime."""
