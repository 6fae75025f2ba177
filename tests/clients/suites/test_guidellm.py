"""`guidellm`, vLLM's load client: every request of a short run is answered, streamed, with its usage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.suites.conftest import NAMES

pytest.importorskip("guidellm", reason="guidellm is not installed")

NUM_REQUESTS = 12


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_short_run(url: str, path: str, tmp_path: Path) -> None:
    program = shutil.which("guidellm", path=str(Path(sys.executable).parent))
    assert program, "guidellm has no command"
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Name {each} european capitals"}) for each in range(NUM_REQUESTS)]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    report = tmp_path / "report.json"
    options = {
        "--backend": f"kind=openai_http,target={url},model={NAMES[0]},request_format={path}",
        "--profile": "kind=concurrent,streams=3",
        "--constraint": f"kind=max_requests,count={NUM_REQUESTS}",
        "--data": f"kind=json_file,path={prompts}",
        "--output": f"kind=json,path={report}",
    }
    words = [word for option in options.items() for word in option]
    done = subprocess.run(
        [program, "run", *words, "--disable-console"], capture_output=True, encoding="utf-8", timeout=100, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    counts = run["metrics"]["request_totals"]
    assert (counts["successful"], counts["errored"]) == (NUM_REQUESTS, 0)
    assert run["metrics"]["output_token_count"]["successful"]["total_sum"] > NUM_REQUESTS
