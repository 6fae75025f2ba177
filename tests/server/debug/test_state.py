"""`GET /debug/state` of a server whose engine stands still after its first step."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from ternvl.llm import LLM
from tests.server.calling import CHAT
from tests.server.fakes import scripted_llm, serving, tiny_llm
from tests.waiting import eventually

SECRET = "a prompt of a patient"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "ignore_eos": True}


class Held:
    """Lets an engine run as many steps as it is told to; between two of them it stands still."""

    def __init__(self, llm: LLM) -> None:
        self.num_steps, self._turns, self._step = 0, threading.Semaphore(0), llm.engine.step
        llm.engine.step = self._hold  # type: ignore[method-assign]

    def run(self, steps: int = 1) -> None:
        self.num_steps += steps
        self._turns.release(steps)

    def _hold(self) -> Any:
        self._turns.acquire()
        return self._step()


def test_what_runs_and_what_waits(tmp_path: Path) -> None:
    llm = tiny_llm(max_num_seqs=1, speculation="off")
    engine = Held(llm)
    keys = {"api_key": "sk-secret", "admin_key": "hush-hush", "debug_endpoints": True, "lora_dir": tmp_path}
    with (
        serving(llm, **keys) as url,
        httpx.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer hush-hush"}) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(http.post, CHAT, json={**HI, "n": 2, "priority": 3, "cache_salt": "salt-7"})
        try:
            eventually(lambda: len(http.get("/debug/state").json()["sequences"]) == 2)
            engine.run()
            eventually(lambda: http.get("/debug/state").json()["engine"]["num_steps"] == 1)
            eventually(lambda: http.get("/debug/state").json()["engine"]["seconds_in_step"] > 0)  # of the second one
            text = http.get("/debug/state").text
        finally:
            engine.run(1000)
        usage = answer.result().json()["usage"]
        eventually(lambda: http.get("/debug/state").json()["sequences"] == [])
    told = json.loads(text)
    running, waiting = told["sequences"]
    assert (running["status"], waiting["status"]) == ("running", "waiting")
    assert running["id"].startswith("chatcmpl-")
    counts, size = told["engine"], told["settings"]["engine"]["block_size"]
    assert running["prompt_tokens"] == usage["prompt_tokens"]
    assert (running["output_tokens"], running["max_tokens"], running["images"]) == (1, 5, 0)
    num_tokens = running["prompt_tokens"] + running["output_tokens"]
    assert running["computed_tokens"] == num_tokens - 1, "the last one is drawn and not computed"
    assert running["blocks"] == -(-running["computed_tokens"] // size)
    assert (running["id"][-2:], waiting["id"][-2:]) == ("-0", "-1")
    assert running["age_seconds"] > 0
    assert (waiting["priority"], waiting["blocks"], waiting["has_grammar"], waiting["adapter"]) == (3, 0, False, None)
    assert (counts["num_running"], counts["num_waiting"]) == (1, 1)
    assert counts["num_blocks"] - counts["num_free_blocks"] == running["blocks"]
    assert counts["seconds_in_step"] > 0
    assert counts["kv_cache_tokens"] == counts["num_blocks"] * size
    assert told["server"]["requests"] == 1
    assert told["server"]["connections"] == 2
    assert told["image_workers"]["waiting"] == 0
    engines = [thread for thread in told["threads"] if thread["name"] == "ternvl-engine"]  # also those of other tests
    (stuck,) = [thread for thread in engines if any("test_state:Held._hold" in each for each in thread["stack"])]
    assert stuck["waits"]
    assert stuck["stack"][0] == "threading:Condition.wait"
    settings = told["settings"]["server"]
    assert (settings["api_key"], settings["admin_key"], settings["api_keys"]) == ("(set)", "(set)", None)
    assert settings["lora_dir"] == str(tmp_path)
    for private in (SECRET, "patient", "sk-secret", "hush", "salt-7"):
        assert private not in text


def test_an_engine_without_sequences_of_its_own_has_none() -> None:
    with serving(scripted_llm("ok"), debug_endpoints=True) as url:
        told = httpx.get(f"{url}/debug/state").json()
    assert (told["sequences"], told["engine"]["num_running"]) == ([], 0)
