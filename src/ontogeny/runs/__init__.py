"""The one layer for run directories of every kind: agent runs, language-model runs, studies and saved deployments.

- `formats`: format numbers of everything on disk, and the refusal of other formats.
- `files`: files and folders that are written whole or not at all.
- `records`: JSON lines that survive a kill.
- `folder`: `claim` makes a folder one run's own; `read_spec` says which run a folder holds.
- `checkpoint`: pytrees on disk.
- `recorder`: records, timings and checkpoints of a resumable loop, kept consistent with each other.
- `kinds`: the kinds of run, each registered by its own package; `open_run` and `load`.

Nothing here knows what a run contains. No other package opens files of a run for writing, renames or locks them, or
compares formats.
"""
