"""The hall: whatever door a request came in by, it becomes an `Ask`, and its answer leaves as deltas or a completion."""
