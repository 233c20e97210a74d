"""Development: one file per outer loop, from a genome's first draft to the genome that lives."""
