"""Renders an OpenAPI document as one HTML page, which loads no other files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: #f4f4f4; padding: .75rem; overflow-x: auto; border-radius: 4px; }
section { border-top: 1px solid #ddd; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) {
  body { background: #161616; color: #ddd; } pre { background: #222; } a { color: #8ab4f8; }
}
"""


def render(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    operations = [
        (path, method, described) for path, item in document["paths"].items() for method, described in item.items()
    ]
    links = "".join(_link(*operation) for operation in operations)
    sections = "".join(_section(document, *operation) for operation in operations)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>'
        f'<p>{escape(document["info"]["description"])} For machines: <a href="openapi.json">openapi.json</a>.</p>'
        f"<ul>{links}</ul>{sections}</body></html>"
    )


def _link(path: str, method: str, described: dict[str, Any]) -> str:
    name, summary = f"{method.upper()} {escape(path)}", escape(described["summary"])
    return f'<li><a href="#{described["operationId"]}">{name}</a>: {summary}</li>'


def _section(document: dict[str, Any], path: str, method: str, described: dict[str, Any]) -> str:
    html = f'<section id="{described["operationId"]}"><h2><code>{method.upper()} {escape(path)}</code></h2>'
    html += f"<p>{escape(described['summary'])}{' Deprecated.' * described.get('deprecated', False)}</p>"
    body = next(iter(described.get("requestBody", {}).get("content", {}).values()), None)
    if body:
        html += _fields(document, body["schema"])
        html += f"<h3>Request</h3>{_code(body['example'])}" if "example" in body else ""
    answer = next(iter(described["responses"]["200"]["content"].values()))
    if "example" in answer:
        html += f"<h3>Answer</h3>{_code(answer['example'])}"
    return html + "</section>"


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    return f"<pre>{escape(text)}</pre>"


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> str:
    deprecated = schema.get("properties", {})  # beside the reference, see `openapi.py`
    schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(', '.join(_kinds(field)))}</td>"
        f"<td>{'required' if name in required else 'deprecated' if name in deprecated else ''}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<h3>Fields</h3><table>{rows}</table>"


def _kinds(field: dict[str, Any]) -> Iterator[str]:
    """Yield the types that a value may have, each once."""
    seen = []
    for branch in field.get("anyOf") or field.get("oneOf") or [field]:
        kind = branch.get("type") or ("object" if "$ref" in branch else None)
        kinds = [kind] if kind else list(_kinds(branch)) if branch.keys() & {"anyOf", "oneOf"} else ["any"]
        seen += [each for each in kinds if each != "null" and each not in seen]
    yield from seen
