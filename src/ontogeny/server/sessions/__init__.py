"""Sessions of the server: agents and texts whose state is kept on disk between requests."""
