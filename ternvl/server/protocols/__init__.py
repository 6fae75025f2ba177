"""The protocols. Each has a schema, which turns JSON into an `Ask`, and a module that turns deltas into events."""
