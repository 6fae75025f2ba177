"""Every form of an answer on every endpoint that generates text, and the settings for tiles of every endpoint."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.fakes import tiny_tokenizer

USER = {"role": "user", "content": "hi"}
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 64},
    "/v1/completions": {"prompt": "hi", "max_tokens": 64},
    "/v1/responses": {"input": "hi", "max_output_tokens": 64},
    "/v1/messages": {"messages": [USER], "max_tokens": 64},
}


def text_of(answer: dict[str, Any]) -> str:
    """The text of an answer of any endpoint."""
    if "choices" in answer:
        choice = answer["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])
    content = answer["content"] if "content" in answer else answer["output"][0]["content"]
    return str(content[0]["text"])


FORMS: list[tuple[dict[str, Any], set[str]]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, set()),
    ({"structured_outputs": {"json": SCHEMA}}, set()),
    ({"structured_outputs": {"regex": "(ab|cd){2}"}}, {"abab", "abcd", "cdab", "cdcd"}),
    ({"structured_outputs": {"choice": ["red", "blue"]}}, {"red", "blue"}),
    ({"structured_outputs": {"grammar": 'start: "x" | "yy"'}}, {"x", "yy"}),
    ({"structured_outputs": {"json": SCHEMA, "json_object": False, "disable_fallback": False}}, set()),
    ({"guided_json": SCHEMA}, set()),
    ({"guided_regex": "(ab|cd){2}"}, {"abab", "abcd", "cdab", "cdcd"}),
    ({"guided_choice": ["red", "blue"]}, {"red", "blue"}),
    ({"guided_grammar": 'start: "x" | "yy"'}, {"x", "yy"}),
]
OWN_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}}),
    ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    ("/v1/messages", {"output_format": {"type": "json_schema", "schema": SCHEMA}}),
]


@pytest.mark.parametrize(
    ("path", "form", "texts"),
    [(path, *form) for path in BODIES for form in FORMS] + [(*form, set()) for form in OWN_FORMS],
)
def test_an_answer_has_the_form_that_is_asked_for(
    http: httpx.Client, path: str, form: dict[str, Any], texts: set[str]
) -> None:
    response = http.post(path, json={**BODIES[path], **form, "seed": 1})
    assert response.status_code == 200, response.text
    assert "x-ternvl-ignored-fields" not in response.headers
    text = text_of(response.json())
    assert text in (texts or {json.dumps({"yes": value}, separators=(",", ":")) for value in (True, False)}) or (
        not texts and json.loads(text).keys() == {"yes"}
    )


@pytest.mark.parametrize("path", BODIES)
def test_json_object_begins_an_object(http: httpx.Client, path: str) -> None:
    response = http.post(path, json={**BODIES[path], "response_format": {"type": "json_object"}, "seed": 1})
    assert text_of(response.json()).startswith("{")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_a_form_that_is_not_served_is_refused(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    response = http.post(path, json={**BODIES[path], **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"].startswith(param)
    assert path == "/v1/messages" or error["param"] == param


@pytest.mark.parametrize(
    ("path", "own", "field"),
    [
        ("/v1/responses", {"text": {"format": {"type": "json_object"}}}, "text.format"),
        ("/v1/messages", OWN_FORMS[1][1], "output_config.format.schema"),
        ("/v1/messages", OWN_FORMS[2][1], "output_format.schema"),
    ],
)
def test_two_forms_are_refused_with_both_names(http: httpx.Client, path: str, own: dict[str, Any], field: str) -> None:
    response = http.post(path, json={**BODIES[path], **own, "guided_regex": "a"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{field} and guided_regex are both given")


@pytest.mark.parametrize(
    "fields", [{"tools": [{"type": "function", "function": {"name": "a"}}]}, {"tool_choice": "required"}]
)
def test_completions_call_no_tools(http: httpx.Client, fields: dict[str, Any]) -> None:
    response = http.post("/v1/completions", json={**BODIES["/v1/completions"], **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(fields)))


@pytest.mark.parametrize("path", BODIES)
def test_a_form_has_unlisted_properties_only_on_request(http: httpx.Client, path: str) -> None:
    listed = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    bias = {str(token_id): 100 for token_id in tiny_tokenizer().encode_text(",")}
    body = {**BODIES[path], "guided_json": listed, "temperature": 0, "logit_bias": bias}
    assert json.loads(text_of(http.post(path, json=body).json())).keys() == {"a"}
    body["structured_outputs"] = {"disable_additional_properties": False}
    assert "," in text_of(http.post(path, json=body).json())


def image_uri(width: int, height: int) -> str:
    buffer = BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


WIDE = image_uri(120, 60)
COUNTS: dict[str, dict[str, Any]] = {
    "/tokenize": {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": WIDE, "detail": "original"}}]}
        ]
    },
    "/v1/responses/input_tokens": {
        "input": [
            {"role": "user", "content": [{"type": "input_image", "image_url": WIDE, "detail": "original"}]},
        ]
    },
    "/v1/messages/count_tokens": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": WIDE.split(",")[1]},
                    }
                ],
            }
        ]
    },
}
SETTINGS: list[tuple[dict[str, Any], int]] = [
    ({}, 3),  # two tiles and the thumbnail
    ({"use_thumbnail": False}, 2),
    ({"dynamic_image_size": False}, 1),
    ({"max_dynamic_patch": 1}, 1),
    ({"min_dynamic_patch": 7}, 9),  # 4 x 2 tiles
    ({"min_dynamic_patch": 7, "use_thumbnail": False}, 8),
    ({"dynamic_image_size": True, "max_dynamic_patch": None}, 3),
]


@pytest.mark.parametrize("path", COUNTS)
def test_the_settings_for_tiles_hold_for_a_request(http: httpx.Client, path: str) -> None:
    counts = []
    for settings, _ in SETTINGS:
        response = http.post(path, json={**COUNTS[path], "mm_processor_kwargs": settings})
        assert response.status_code == 200, response.text
        assert "x-ternvl-ignored-fields" not in response.headers
        counts.append(response.json().get("count") or response.json()["input_tokens"])
    alone = counts[2] - 4  # a tile of the tiny model has 4 tokens
    assert [count - alone for count in counts] == [4 * tiles for _, tiles in SETTINGS]


@pytest.mark.parametrize("path", COUNTS)
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"min_dynamic_patch": 0}, "min_dynamic_patch"),
        ({"min_dynamic_patch": 5, "max_dynamic_patch": 4}, "min_dynamic_patch"),
        ({"min_dynamic_patch": 30}, "min_dynamic_patch"),
        ({"use_thumbnail": "no"}, "use_thumbnail"),
        ({"num_crops": 4}, "num_crops"),
        ({"do_resize": False}, "do_resize"),
    ],
)
def test_settings_for_tiles_that_cannot_be_held_to_are_refused(
    http: httpx.Client, path: str, settings: dict[str, Any], field: str
) -> None:
    response = http.post(path, json={**COUNTS[path], "mm_processor_kwargs": settings})
    assert response.status_code == 400
    assert field in response.json()["error"]["message"]
    assert path == "/v1/messages/count_tokens" or response.json()["error"]["param"] == f"mm_processor_kwargs.{field}"
