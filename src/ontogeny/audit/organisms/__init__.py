"""Model organisms of the audit: hand-written agents, one per file, each with its `GROUND_TRUTH` for the tests."""
