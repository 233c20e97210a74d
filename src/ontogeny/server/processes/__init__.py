"""Several server processes that share one database: their leases, and which of them owns a branch."""
