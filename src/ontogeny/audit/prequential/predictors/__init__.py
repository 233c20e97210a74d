"""Predictors whose truth is known; one file each."""
