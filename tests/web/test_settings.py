"""Settings of answers: sampling, system message, adapters, tools, JSON, log probabilities."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.web.drawn import as_file, scene
from tests.web.playground import Playground

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def test_sampling_settings_are_sent_and_accepted(page: Playground) -> None:
    panel = page.settings("Sampling")
    values = {"Temperature": "0.7", "Top p": "0.9", "Max tokens": "12", "Seed": "41"}
    for label, value in values.items():
        panel.get_by_label(label).fill(value)
    panel.get_by_label("System message").fill("Be brief.")
    page.ask("Hello")
    body = page.body()
    assert {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 12,
        "seed": 41,
    }
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert page.last.get_attribute("data-state") == "done"


def test_the_same_seed_gives_the_same_answer(page: Playground) -> None:
    panel = page.settings("Sampling")
    panel.get_by_label("Temperature").fill("2")
    panel.get_by_label("Max tokens").fill("16")
    said = []
    for seed in ("5", "5", "6"):
        panel.get_by_label("Seed").fill(seed)
        page.tab.keyboard.press("Alt+n")
        page.ask("Tell me something")
        said.append(page.said())
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("label", "value", "wrong"),
    [
        ("Temperature", "3", "The most is 2."),
        ("Top p", "-1", "The least is 0."),
        ("Max tokens", "1.5", "This is not a whole number."),
        ("Seed", "abc", "This is not a number."),
    ],
)
def test_a_number_that_is_out_of_range_is_told_and_not_taken(
    page: Playground, label: str, value: str, wrong: str
) -> None:
    field = page.settings("Sampling").get_by_label(label)
    field.fill(value)
    page.tab.get_by_text(wrong).wait_for()
    assert field.get_attribute("aria-invalid") == "true"
    page.ask("Hello")
    assert set(page.body()) == {"messages", "stream", "stream_options"}


def test_settings_last_for_the_next_conversation(page: Playground) -> None:
    page.settings("Sampling").get_by_label("Seed").fill("7")
    page.tab.reload()
    page.ask("Hello")
    assert page.body()["seed"] == 7


def test_an_answer_that_is_cut_is_told(page: Playground) -> None:
    page.settings("Sampling").get_by_label("Max tokens").fill("3")
    page.ask("Name the european capitals").get_by_text("cut at its largest number of tokens").wait_for()


def test_adapters_are_listed_below_their_model_and_answer(page: Playground) -> None:
    choice = page.tab.get_by_label("Model", exact=True)
    group = choice.locator("optgroup")
    assert group.get_attribute("label") == "Adapters of ternvl-nano"
    assert group.locator("option").all_inner_texts() == ["french", "inventory"]
    choice.select_option("french")
    page.attach(as_file(scene()))
    page.ask("Describe the image.")
    assert page.body()["model"] == "french"
    assert page.said() == "Un cercle rouge et un carré bleu."


def test_the_json_of_an_answer_is_made_readable(page: Playground) -> None:
    page.tab.get_by_label("Model", exact=True).select_option("inventory")
    page.attach(as_file(scene()))
    answer = page.ask("Describe the image.")
    shown = answer.get_by_role("region", name="The answer as JSON").inner_text()
    value = json.loads(shown)
    assert value["objects"][0] == "red circle"
    assert shown == json.dumps(value, indent=2)


def test_an_answer_is_held_to_a_schema(page: Playground) -> None:
    schema = {"type": "object", "properties": {"answer": {"enum": ["Lisbon.", "Rome."]}}, "required": ["answer"]}
    panel = page.settings("Form of answers")
    panel.get_by_label("An answer is").select_option("json_schema")
    page.tab.get_by_text("The JSON Schema of answers: There is none yet.").wait_for()
    panel.get_by_label("JSON Schema", exact=True).fill('{"type": ')
    panel.get_by_text("This is not JSON").wait_for()
    page.message.fill("What is the capital of Portugal?")
    assert page.button("Send").is_disabled()
    panel.get_by_label("JSON Schema", exact=True).fill(json.dumps(schema))
    page.message.press("Enter")
    answer = page.answered()
    assert page.body()["response_format"]["json_schema"]["schema"] == schema
    assert json.loads(answer.locator("pre").inner_text()) == {"answer": "Lisbon."}


def add_tool(page: Playground, name: str, description: str, parameters: str) -> None:
    dialog = page.tab.get_by_role("dialog")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_label("Description").fill(description)
    dialog.get_by_label("Arguments, a JSON Schema").fill(parameters)
    page.button("Save the tool").click()


def test_a_tool_is_added_called_and_answered(page: Playground) -> None:
    panel = page.settings("Tools")
    page.button("Add a tool", panel).click()
    add_tool(page, "get weather", "Get the weather of a city.", "[]")
    page.tab.get_by_text("A name has 1 to 64 letters, digits, _ or -.").wait_for()
    page.tab.get_by_text("A JSON Schema is an object: {...}").wait_for()
    add_tool(page, "get_weather", "Get the weather of a city.", json.dumps(WEATHER))
    page.tab.locator("dialog").wait_for(state="detached")

    card = page.ask("What is the weather in Porto?").get_by_role("region", name="Call of get_weather")
    assert json.loads(card.locator("pre").inner_text()) == {"city": "Porto"}
    function = {"name": "get_weather", "description": "Get the weather of a city.", "parameters": WEATHER}
    assert page.body()["tools"] == [{"type": "function", "function": function}]

    assert page.button("Send the result").is_disabled()
    card.get_by_label("Result of get_weather").fill("Sunny, 21 degrees.")
    page.button("Send the result").click()
    page.tab.get_by_role("region", name="Result of get_weather").wait_for()
    page.answered()
    call, result = page.body()["messages"][1:]
    assert call["tool_calls"][0]["function"]["name"] == "get_weather"
    assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "Sunny, 21 degrees."}
    assert page.said() == "Sunny, 21 degrees."


def test_which_tool_is_called_can_be_required(page: Playground) -> None:
    panel = page.settings("Tools")
    for name in ("call", "search"):
        page.button("Add a tool", panel).click()
        add_tool(page, name, "", json.dumps(WEATHER))
        page.tab.locator("dialog").wait_for(state="detached")
    panel.get_by_label("Calls").select_option("function:search")
    page.ask("Hello").get_by_role("region", name="Call of search").wait_for()
    assert page.body()["tool_choice"] == {"type": "function", "function": {"name": "search"}}
    page.button("Remove search", panel).click()
    page.tab.get_by_text("The tool that the model must call is no longer there.").wait_for()


def test_a_call_that_was_cut_cannot_be_answered(page: Playground) -> None:
    page.feign(
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a": "b'}}]},
        finish="length",
    )
    answer = page.ask("Hello")
    answer.get_by_text("Do not carry out the last one.").wait_for()
    assert answer.locator("pre").inner_text() == '{"a": "b'
    assert answer.get_by_role("textbox").count() == 0


def test_the_probabilities_of_tokens_are_shown(page: Playground, address: str) -> None:
    panel = page.settings("Log probabilities")
    panel.get_by_label("Ask for them").check()
    panel.get_by_label("Alternatives of each token").select_option("3")
    answer = page.ask("Hello")
    body = {**page.body(), "stream": False}
    del body["stream_options"]
    listed = httpx.post(f"{address}/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    page.button("Tokens", answer).click()
    tokens = answer.get_by_role("option")
    assert tokens.count() == len(listed)
    tokens.nth(2).hover()
    rows = answer.locator(".alternatives tr")
    assert rows.count() == 3
    numbers = [f"{each['logprob']:.3f}" for each in listed[2]["top_logprobs"]]
    assert [row.split("\t")[-1] for row in rows.all_inner_texts()] == numbers
    answer.get_by_role("listbox").press("ArrowRight")
    assert tokens.nth(3).get_attribute("aria-selected") == "true"
    answer.get_by_role("listbox").press("Home")
    assert tokens.nth(0).get_attribute("aria-selected") == "true"
    assert listed[0]["token"] in answer.locator("caption").inner_text()
