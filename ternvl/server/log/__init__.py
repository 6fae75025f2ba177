"""The log: its form, the ids of requests, and a line for each request."""
