"""Elements of `GET /v1/models`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ternvl.config import ServerConfig
from ternvl.llm import LLM
from ternvl.server.cards import ModelCards
from ternvl.server.names import ModelNames
from tests.server.lora import make_llm, write_adapter


@pytest.fixture
def llm(tmp_path: Path) -> LLM:
    llm = make_llm()
    for seed, name in enumerate(("two", "one")):
        llm.load_adapter(name, write_adapter(tmp_path / name, seed))
    return llm


def cards_of(llm: LLM) -> ModelCards:
    config = ServerConfig(served_model_name=("first", "second"))
    return ModelCards(ModelNames(llm.name, config, llm.adapters), llm.adapters, 99, llm.builder)


def test_the_model_comes_under_each_name_and_then_its_adapters(llm: LLM) -> None:
    cards = cards_of(llm).all()
    assert [card["id"] for card in cards] == ["first", "second", "one", "two"]
    assert [card.get("parent") for card in cards] == [None, None, "first", "first"]
    for card in cards:
        assert (card["object"], card["owned_by"], card["max_model_len"]) == ("model", "ternvl", 99)


def test_one_card_is_that_of_the_list(llm: LLM) -> None:
    cards = cards_of(llm)
    assert [cards.of(card["id"]) for card in cards.all()] == cards.all()
    entry = llm.adapters.known("two")
    assert cards.of_adapter(entry)["created"] == entry.created


def test_an_adapter_that_is_unloaded_has_no_card(llm: LLM) -> None:
    cards = cards_of(llm)
    llm.unload_adapter("two")
    assert [card["id"] for card in cards.all()] == ["first", "second", "one"]
