"""What happens between a client's connection and the application: the form of requests, time limits, numbers."""
