"""What the log says of administrators."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import serving
from tests.server.guard.keyed import bearer, write
from tests.server.lora import files, make_llm, write_adapter


def test_who_did_what_and_what_came_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert logging.getLogger().level == logging.WARNING, "the lines are written at every level"
    adapter = write_adapter(tmp_path / "given" / "one", 1)
    (tmp_path / "dir").mkdir()
    boss = {"name": "boss", "key": "hush-hush", "roles": ["admin"]}
    path = write(tmp_path / "keys.toml", boss, {"name": "team", "key": "sotto-voce"})
    options = {"lora_dir": tmp_path / "dir", "allowed_lora_dirs": (str(tmp_path / "given"),), "allow_lora_upload": True}
    with (
        serving(make_llm(), api_key_file=path, **options) as url,
        httpx.Client(base_url=url, headers=bearer("hush-hush") | {"x-request-id": "r1"}, timeout=60) as http,
    ):
        load = {"lora_name": "one", "lora_path": str(adapter)}
        http.post("/v1/load_lora_adapter", json=load)
        http.post("/v1/load_lora_adapter", json=load | {"lora_name": 'a\nboss from nowhere: "'})
        http.post("/v1/load_lora_adapter", json=load | {"lora_path": "/etc"})
        http.post("/v1/unload_lora_adapter", json={"lora_name": "one"})
        http.post("/v1/upload_lora_adapter", data={"lora_name": "two"}, files=files(adapter))
        http.post("/v1/load_lora_adapter", json=load, headers=bearer("sotto-voce"))
        http.post("/v1/load_lora_adapter", json=load, headers=bearer("guessed-key"))
        http.post(CHAT, json=BRIEF)
    lines = [record.getMessage() for record in caplog.records if record.name == "ternvl.audit"]
    named = f'"lora_path": "{adapter}"'
    assert lines == [
        f'boss from 127.0.0.1: POST /v1/load_lora_adapter {{"lora_name": "one", {named}}}: '
        "done, status 200 (request r1)",
        'boss from 127.0.0.1: POST /v1/load_lora_adapter {"lora_name": "a\\nboss from nowhere: \\"", '
        f"{named}}}: refused or failed, status 400 (request r1)",
        'boss from 127.0.0.1: POST /v1/load_lora_adapter {"lora_name": "one", "lora_path": "/etc"}: '
        "refused or failed, status 403 (request r1)",
        'boss from 127.0.0.1: POST /v1/unload_lora_adapter {"lora_name": "one", "abort": false}: '
        "done, status 200 (request r1)",
        'boss from 127.0.0.1: POST /v1/upload_lora_adapter {"lora_name": "two"}: done, status 200 (request r1)',
        "team from 127.0.0.1: POST /v1/load_lora_adapter {}: refused or failed, status 401 (request r1)",
        "nobody known from 127.0.0.1: POST /v1/load_lora_adapter {}: refused or failed, status 401 (request r1)",
    ]
    assert all(secret not in caplog.text for secret in ("hush", "sotto", "guessed"))
