"""Servers whose processes a cluster manager starts and watches."""
