"""Where the snapshots of weights are stored: a folder, or an S3-compatible object store."""
