"""The description of the API for machines and for people."""
