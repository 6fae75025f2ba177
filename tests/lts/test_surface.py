"""What others rely on: the promises of surface.txt, which a release line keeps."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts.module import script as load_script

ROOT = Path(__file__).resolve().parents[2]
WHAT_TO_DO = (
    "promises of tests/lts/surface.txt are broken (listed above). docs/support.md says what a release may change: "
    "restore them and deprecate first, or, if this release may break them, run `python scripts/surface.py` and write a "
    "migration note into CHANGELOG.md."
)


@pytest.fixture(scope="module")
def surface() -> ModuleType:
    return load_script("surface")


def test_nothing_was_removed_or_changed(surface: ModuleType) -> None:
    promised = surface.SNAPSHOT.read_text(encoding="utf-8").splitlines()
    assert len(promised) > 2000
    broken = surface.broken(promised)
    assert not broken, "\n".join([*broken, f"{len(broken)} {WHAT_TO_DO}"])


@pytest.mark.parametrize(
    "line",
    [
        "api POST /v1/chat/completions takes application/json.temperature: maximum 2",
        "api POST /v1/chat/completions takes application/json.messages[](assistant).content: string",
        "api POST /v1/chat/completions takes application/json: requires messages",
        "api POST /v1/messages gives application/json.content: always there",
        "api GET /health: access open, errors openai",
        "cli ternvl serve --port: int, default 8000",
        "cli ternvl serve --api-key: str, variable TERNVL_API_KEY",
        "cli ternvl lora merge",
        "metric ternvl_requests_total: counter, labels endpoint, status",
        "config EngineConfig.max_model_len: int = 16384",
        "config SamplingParams.stop: tuple[str, ...] = ()",
        "python ternvl.LLM.chat(adapter: 'str | Sequence[str | None] | None' = None)",
        "python ternvl.LLM.load_adapter(): requires name, path",
        "python ternvl.errors.MediaError: is a RequestError",
    ],
)
def test_each_kind_of_promise_is_there_and_its_change_is_noticed(surface: ModuleType, line: str) -> None:
    assert surface.broken([line, line + "0"]) == [line + "0"]


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)[:1]}


@pytest.mark.parametrize(
    ("after", "lost"),
    [
        (schema(a={"type": "string"}), ["x.b: 'one'", "x.b: 'two'", "x.b: string"]),
        (schema(a={"type": "integer"}, b={"enum": ["one", "two"], "type": "string"}), ["x.a: string"]),
        (schema(a={"type": "string"}, b={"enum": ["one"], "type": "string"}), ["x.b: 'two'"]),
        (schema(a={"type": "string"}, b={"enum": ["one", "two", "three"], "type": "string"}), []),
        (schema(a={"type": "string"}, b={"enum": ["one", "two"], "type": "string"}, c={"type": "null"}), []),
        (
            schema(a={"type": "string"}, b={"enum": ["one", "two"], "type": "string"}) | {"required": ["a", "b"]},
            ["x: requires a"],
        ),
    ],
)
def test_removals_and_new_requirements_are_breaks_and_additions_are_not(
    surface: ModuleType, after: dict[str, Any], lost: list[str]
) -> None:
    before = schema(a={"type": "string"}, b={"enum": ["one", "two"], "type": "string"})
    walk = surface.Walk({}, exact=True)
    assert sorted({*walk.lines("x", before)} - {*walk.lines("x", after)}) == lost


def test_a_circular_schema_ends(surface: ModuleType) -> None:
    schemas = {"Node": schema(next={"$ref": "#/components/schemas/Node"})}
    lines = list(surface.Walk(schemas, exact=False).lines("x", {"$ref": "#/components/schemas/Node"}))
    assert lines == ["x: object", "x.next: always there"]
