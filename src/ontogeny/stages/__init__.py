"""The stages of an agent, separated by code: training, evaluation and deployment, and what is saved between them.

`spec` (a run as data), `first_check` (of the user's files) and `assembly` (from a spec to an agent) come first;
`saved_agent` (an agent on disk) uses these; `train`, `evaluate`, `deploy` and `session` use all four and not each
other. `run_kinds` registers the folders of this package.
"""
