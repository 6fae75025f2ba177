"""Token ids to what a client gets: text, stop strings, tool calls. Each is a `decode(x)` and a `flush()`."""
