"""The audit: tests of what an agent does and carries, each with controls; organisms whose truth is known."""
