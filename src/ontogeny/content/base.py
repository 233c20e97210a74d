"""What learned content shares: nothing yet but the records in `ontogeny.types`."""
