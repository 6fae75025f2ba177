"""schemathesis over `/openapi.json`: every endpoint, every check, bounded and seeded.

JSON Schema cannot say which texts are grammars, how many tokens the context holds or which fields contradict each
other, so a request that matches its schema may still be refused with 400. It must not be refused for a reason that the
schema could have given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis.config import SchemathesisConfig

from ternvl.server.docs.openapi import document
from ternvl.server.operations import OPERATIONS
from tests.counts import count
from tests.server.fakes import serving, tiny_llm

NUM_EXAMPLES = count("TERNVL_SCHEMATHESIS_EXAMPLES")
"""The number of cases of each endpoint; 250 make more than 3,000 cases."""

_CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "403", "404"]}},
        "phases": {"coverage": {"enabled": False}},
        "request-timeout": 60,  # seconds, for machines that are busy with other work
    }
)
_API = schemathesis.openapi.from_dict(document(OPERATIONS), config=_CONFIG)
_EXPRESSIBLE = re.compile(
    r"is required\.|must not be an empty string|has (fewer|more) than"
    r"|must be (an? (?!URI|string of JSON)|one of|(less|greater) than)"
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(tiny_llm(max_model_len=48, max_num_seqs=64), max_body_bytes=1_000_000) as url:
        yield url


def refused_for_its_own_schema(context: Any, response: Any, case: Any) -> None:
    """A check: a request that matches its schema is not refused for a reason that a schema can give."""
    if response.status_code == 400 and case.meta.generation.mode.is_positive:
        message = response.json()["error"]["message"]
        assert not _EXPRESSIBLE.search(message), message


@_API.parametrize()
@seed(1)
@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_the_api_is_as_it_is_described(address: str, case: schemathesis.Case) -> None:
    case.call_and_validate(base_url=address, additional_checks=[refused_for_its_own_schema])
