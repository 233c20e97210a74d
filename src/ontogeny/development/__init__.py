"""Development: one file per outer loop, from an initial genome to the genome that is deployed."""
