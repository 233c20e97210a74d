"""Shared parts of HTML reports: templates, number formatting and chart style. Records come in, HTML goes out.

A package that reports something keeps its own `page.py` and its templates; this package knows nothing of the contents.
"""
