"""Files in: where a checkpoint lies, what its configuration says, and its weights under their official names."""
