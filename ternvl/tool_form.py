"""The form of a tool call in the model's text, which is Qwen2.5's.

The chat template describes this form to the model, the tools' grammar allows no other, and the parser reads it.
"""

from __future__ import annotations

import json

START, END = "<tool_call>", "</tool_call>"

TAIL = "}\n" + END
"""The text after the arguments of a call."""


def head(name: str) -> str:
    """Return the text before the arguments of a call of the function `name`."""
    return f'{START}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
