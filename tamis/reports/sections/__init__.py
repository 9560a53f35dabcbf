"""The sections of a report: each function gives one section's numbers, or None where the run has no such stage."""
