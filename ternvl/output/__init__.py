"""From token ids to what a client receives: text, stop strings, reasoning and tool calls.

Each stage has `decode(piece)` and `flush()`.
"""
