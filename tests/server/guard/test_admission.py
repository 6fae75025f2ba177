"""Who is refused because of the work that waits, on a server with a real engine that the test holds in a step."""

from __future__ import annotations

import io
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
from PIL import Image

from ternvl.engine.admission.forecast import Forecast, Rates
from ternvl.engine.stats import EngineStats
from tests.server.calling import BRIEF, CHAT, error_of
from tests.server.fakes import serving, tiny_llm
from tests.server.images import data_uri
from tests.waiting import eventually


class Known(Forecast):
    """A machine that takes a second for each tile, and no time for anything else."""

    def rates(self) -> Rates:
        return Rates(tile=1.0)


def asking_of(seed: int) -> dict[str, object]:
    """An image of 13 tiles, no two of which are equal."""
    picture, data = Image.frombytes("RGB", (240, 180), random.Random(seed).randbytes(240 * 180 * 3)), io.BytesIO()
    picture.save(data, "PNG")
    image = {"type": "image_url", "image_url": {"url": data_uri(data.getvalue())}}
    return {"messages": [{"role": "user", "content": [image]}], "max_tokens": 1}


def test_an_image_of_many_tiles_counts_as_what_it_costs() -> None:
    llm = tiny_llm(max_queue_wait=12.5)
    forecast = llm.service._loop._forecast = Known()
    forecast.learn(EngineStats(), EngineStats(num_steps=1, num_generated_tokens=1), 1.0)
    forecast.end(1)
    may_step, step = threading.Event(), llm.engine.step

    def held_step() -> object:
        assert may_step.wait(60)
        return step()

    llm.engine.step = held_step  # type: ignore[method-assign, assignment]
    with serving(llm) as url, ThreadPoolExecutor() as threads:
        post = lambda body: threads.submit(httpx.post, url + CHAT, json=body, timeout=60)  # noqa: E731
        try:
            large = post(asking_of(1))
            eventually(lambda: llm.engine.stats().num_waiting == 1)
            refused = post(asking_of(2)).result()
            small = [post(BRIEF) for _ in range(4)]
            eventually(lambda: len(llm.service._open) == 5)
        finally:
            may_step.set()
        assert refused.status_code == 429
        assert "about 13 s, but may wait for 12.5 s (--max-queue-wait)" in error_of(refused)["message"]
        assert refused.headers["retry-after"] == "1"
        assert [each.result().status_code for each in (large, *small)] == [200] * 5
        assert post(asking_of(2)).result().status_code == 200, "there is no work before it any more"
