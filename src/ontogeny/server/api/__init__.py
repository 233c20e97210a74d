"""HTTP routes of the server, the requests they accept and the form of their answers."""
