"""A laboratory for where a learned agent's ability comes from, and where it goes on changing in use."""

__version__ = "0.1.0"
