"""Studies: several developments side by side, their records, and one page that shows them."""
