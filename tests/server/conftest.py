from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from ternvl.limits import ImageLimits
from ternvl.llm import LLM
from tests.server.fakes import serving, tiny_llm


@pytest.fixture(scope="session")
def llm() -> LLM:
    return tiny_llm(limits=ImageLimits(allow_private_addresses=True, max_image_bytes=200_000))


@pytest.fixture(scope="session")
def url(llm: LLM) -> Iterator[str]:
    with serving(llm, max_body_bytes=1_000_000) as address:
        yield address


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=110) as client:  # a busy machine is no fault of the server
        yield client


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
