"""lm-eval, the harness of most published scores, against a live server: log likelihoods and answers.

Its tasks and data are local files, so nothing is downloaded. The numbers are compared with the offline API's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ternvl.checkpoint import source
from ternvl.llm import LLM
from ternvl.params import SamplingParams
from ternvl.types import Prompt

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed"),
    pytest.mark.timeout(600),
]

CAPITALS = {"France": "Paris.", "Italy": "Rome.", "Germany": "Berlin.", "Spain": "Madrid."}
TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{{question}}<|im_end|>\n"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {output_type}
doc_to_text: {text}
target_delimiter: ""
"""
CHOICES = """\
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """\
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity}]
"""
GENERATED = """\
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with the tasks and their data: four questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    names = list(CAPITALS.values())
    documents = [
        {"question": f"What is the capital of {country}?", "choices": names, "answer": names.index(capital)}
        for country, capital in CAPITALS.items()
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in documents))
    turn = json.dumps(TURN + "<|im_start|>assistant\n")
    for name, output_type, text, rest in (
        ("ternvl_choice", "multiple_choice", turn, CHOICES),
        ("ternvl_rolling", "loglikelihood_rolling", '""', ROLLING),
        ("ternvl_answer", "generate_until", '"{{question}}"', GENERATED),
    ):
        head = TASK.format(name=name, data=data, output_type=output_type, text=text)
        (folder / f"{name}.yaml").write_text(head + rest)
    return folder


def evaluate(tasks: Path, model: str, arguments: dict[str, Any], *options: str) -> tuple[dict[str, Any], list[Any]]:
    """Run lm-eval; return its results and its samples."""
    out = tasks / "out"
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", given, *options]
    command += ["--include_path", str(tasks), "--output_path", str(out), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "hf")}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (result,) = out.rglob("results_*.json")
    samples = [json.loads(line) for path in out.rglob("samples_*.jsonl") for line in path.read_text().splitlines()]
    return json.loads(result.read_text())["results"], samples


def likelihood(llm: LLM, context: str, continuation: str) -> tuple[float, bool]:
    """The log probability of a continuation, and whether each of its tokens is the likeliest.

    White space at the end of the context counts as part of the continuation, as it does for lm-eval.
    """
    encode = llm.tokenizer.full.encode
    ids, start = encode(context + continuation).ids, len(encode(context.rstrip()).ids)
    params = SamplingParams(prompt_logprobs=0, max_tokens=0)
    values = llm.generate(Prompt(tuple(ids)), params)[0].prompt_logprobs
    assert values is not None
    listed = [value for value in values[start:] if value is not None]
    assert len(listed) == len(ids) - start
    return sum(value.logprob for value in listed), all(value.rank == 1 for value in listed)


def test_log_likelihoods(tasks: Path, address: str, embedded: LLM) -> None:
    arguments = {
        "model": "ternvl-nano",
        "base_url": f"{address}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": source.resolve(None),
        "num_concurrent": 2,
    }
    options = ("--tasks", "ternvl_choice,ternvl_rolling", "--batch_size", "3")
    results, samples = evaluate(tasks, "local-completions", arguments, *options)
    num_requests = 0
    for sample in samples:
        for given, (response,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            num_requests += 1
            if "arg_1" in given:
                value, is_greedy = likelihood(embedded, given["arg_0"], given["arg_1"])
                assert (float(response[0]), response[1]) == (pytest.approx(value, abs=1e-4), str(is_greedy))
            else:  # lm-eval puts the end token in front of a whole text
                value, _ = likelihood(embedded, "<|im_end|>", given["arg_0"])
                assert float(response) == pytest.approx(value, abs=1e-4)
    assert num_requests == 4 * 4 + 4
    assert results["ternvl_choice"]["acc,none"] == 1
    assert results["ternvl_rolling"]["byte_perplexity,none"] > 1


def test_answers(tasks: Path, address: str, embedded: LLM) -> None:
    arguments = {"model": "ternvl-nano", "base_url": f"{address}/v1/chat/completions"}
    options = ("--tasks", "ternvl_answer", "--apply_chat_template")
    results, samples = evaluate(tasks, "local-chat-completions", arguments, *options)
    assert len(samples) == len(CAPITALS)
    for sample in samples:
        question = [{"role": "user", "content": sample["doc"]["question"]}]
        wanted = embedded.chat(question, SamplingParams(temperature=0, max_tokens=24))[0].text
        assert sample["resps"] == [[wanted]]
    assert results["ternvl_answer"]["exact_match,none"] == 1
