"""The JavaScript package: its own tests, its types, and Node against a live server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.azion import page
from tests.npm import install
from tests.server.fakes import scripted_llm, serving
from tests.waiting import eventually


def test_its_own_tests() -> None:
    tests = [str(path) for path in sorted((page.PACKAGE / "test").glob("*.test.js"))]
    assert tests
    report = page.node("--test", "--test-reporter=tap", *tests, cwd=page.PACKAGE)
    assert "\n# fail 0\n" in report
    assert "\n# pass 0\n" not in report


def test_its_types() -> None:
    install(page.PACKAGE)
    compiler = page.PACKAGE / "node_modules" / ".bin" / "tsc"
    result = subprocess.run([compiler, "--project", "."], cwd=page.PACKAGE, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_package_has_no_dependencies_and_all_its_files() -> None:
    package = json.loads((page.PACKAGE / "package.json").read_text())
    assert not {"dependencies", "peerDependencies", "optionalDependencies"} & package.keys()
    exported = [path for entry in package["exports"].values() if isinstance(entry, dict) for path in entry.values()]
    for path in [*exported, *package["files"], package["types"]]:
        assert (page.PACKAGE / path).exists(), path


def test_a_refusal(url: str, tmp_path: Path) -> None:
    source = """
import { Azion } from "ternvl-azion";
const messages = [{ role: "user", content: "Hi" }];
const refused = (promise) => promise.then(() => null, ({ status, body }) => ({ status, body }));
console.log(JSON.stringify([
  await refused(Azion.AI.run("opengvlab-internvl3-1b-instruct", { messages, temperature: 3, stream: true })),
  await refused(Azion.AI.run("gpt-9", { messages })),
]));
"""
    hot, unknown = json.loads(page.run_module(source, tmp_path, url))
    assert hot["status"] == 400
    assert hot["body"]["error"]["param"] == "temperature"
    assert unknown["status"] == 404
    assert unknown["body"]["error"]["code"] == "model_not_found"


def test_leaving_the_loop_ends_the_answer(tmp_path: Path) -> None:
    llm = scripted_llm("On and on. ", endless=True)
    source = """
import "ternvl-azion/register";
const messages = [{ role: "user", content: "Hi" }];
const stream = await Azion.AI.run("opengvlab-internvl3-1b-instruct", { messages, stream: true });
for await (const chunk of stream) {
  console.log(chunk.choices[0].delta.role);
  break;
}
"""
    with serving(llm) as address:
        assert page.run_module(source, tmp_path, address) == "assistant\n"
        eventually(lambda: not llm.engine.has_work)
        assert len(llm.engine.aborted) == 1  # type: ignore[union-attr]
