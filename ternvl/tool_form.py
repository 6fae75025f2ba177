"""The form of a tool call in the model's text, Qwen2.5's: the template shows it, the grammar allows it alone, and the
parser finds it again."""

from __future__ import annotations

import json

START, END = "<tool_call>", "</tool_call>"

TAIL = "}\n" + END
"""What stands behind the arguments."""


def head(name: str) -> str:
    """What stands before the arguments of a call of the function `name`."""
    return f'{START}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
