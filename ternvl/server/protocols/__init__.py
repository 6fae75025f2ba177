"""One file for each protocol, beside its schema: JSON becomes an `Ask`, and deltas become events."""
