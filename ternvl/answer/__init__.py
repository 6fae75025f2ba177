"""The hall: whatever door a request came in by, it is an `Ask` here, and its answer leaves as deltas."""
