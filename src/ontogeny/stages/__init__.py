"""The stages of a life, kept apart by code: training, evaluation, deployment; and what is saved between them.

Imports inside go one way: `subject` (what a run is about), `lock` (one process at a time) and `checkpoint` (trees on
disk) know no other room of the lifecycle but `trial` (a first look at somebody's own files), which `subject` calls;
`saved` (an agent on disk) knows these, and the stages know all four and not each other.
"""
