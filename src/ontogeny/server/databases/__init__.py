"""The databases that can hold the state of a server: SQLite in the state folder, or PostgreSQL."""
