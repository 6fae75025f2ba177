"""When the stages of a request began and ended."""
