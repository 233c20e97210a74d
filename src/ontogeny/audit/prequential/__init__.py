"""Prequential audit: tests whether the scores of an online predictor are those of a single first pass over a stream."""
