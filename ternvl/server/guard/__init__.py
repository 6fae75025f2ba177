"""The protection of the server: keys, admission, limits on bodies, and checks of its settings."""
