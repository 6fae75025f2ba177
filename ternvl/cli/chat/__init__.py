"""`ternvl chat` and `ternvl run`: a conversation in a terminal, and one question for scripts and pipes."""
