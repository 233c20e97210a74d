"""The stages of a life, kept apart by code: training, evaluation, deployment; and the checkpoints between them.

Imports inside go one way: `subject` and `checkpoint` know no other room of the lifecycle, the stages know these two.
"""
