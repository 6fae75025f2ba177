"""Measures several replicas of the embedded model on one machine.

    python -m benchmarks.cluster                    everything, with 20 scale events
    python -m benchmarks.cluster --only scale --events 200
    python -m benchmarks.cluster --only head        the head ends and comes back; needs redis-server
    python -m benchmarks.cluster --write            also writes benchmarks/results/cluster.md

It needs the extra `cluster`.
"""

from __future__ import annotations

import argparse
import base64
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.cluster.fleet import Fleet, fleet, free_port, kill, wait_for
from benchmarks.cluster.head import restarted
from benchmarks.cluster.load import Outcome, asked, failed, picture, under_load, words
from ternvl.cluster.settings import ClusterConfig, ClusterSettings
from ternvl.config import EngineConfig, LoadingConfig, ServerConfig

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cluster.md"


def settings(replicas: int, *, affinity: bool = True) -> ClusterSettings:
    """Return the settings of so many replicas, which share two processors."""
    return ClusterSettings(
        cluster=ClusterConfig(replicas=replicas, replica_cpus=1, affinity=affinity),
        loading=LoadingConfig(threads=max(1, 2 // replicas)),
        engine=EngineConfig(max_model_len=2048, max_num_seqs=16),
        server=ServerConfig(port=free_port(), served_model_name=("nano",)),
    )


def image(number: int) -> str:
    """Return a picture as a data: URL."""
    data = BytesIO()
    Image.new("RGB", (112, 112), (number * 37 % 256, number * 91 % 256, number * 11 % 256)).save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def throughput(cluster: Fleet) -> str:
    """Return the pace of 48 streams, 16 at a time, as a row of a table."""
    asked(cluster.url, [words(f"Warm {index}", max_tokens=16, stream=True) for index in range(8)])
    bodies = [words(f"Stream {index}: tell me", max_tokens=128, ignore_eos=True, stream=True) for index in range(48)]
    began = time.perf_counter()
    outcomes = asked(cluster.url, bodies, 16)
    seconds = time.perf_counter() - began
    firsts = sorted(each.first for each in outcomes)
    tokens = 128 * sum(each.is_whole for each in outcomes)
    p99 = firsts[min(len(firsts) - 1, int(len(firsts) * 0.99))]
    number = cluster.settings.cluster.replicas
    median = statistics.median(firsts)
    return f"| {number} | {tokens / seconds:.0f} | {median * 1000:.0f} | {p99 * 1000:.0f} | {failed(outcomes)} |"


def hits(cluster: Fleet) -> str:
    """Return the hits of conversations and of images as a row of a table."""
    before = {name: cluster.total(name) for name in _COUNTS}
    shuffled = [picture(image(number), f"Question {turn}?", max_tokens=2) for turn in range(5) for number in range(16)]
    random.Random(3).shuffle(shuffled)
    asked(cluster.url, shuffled, 4)
    after = {name: cluster.total(name) for name in _COUNTS}
    tiles = after["num_encoded_tiles"] - before["num_encoded_tiles"]  # each image is one
    conversations(cluster)
    final = {name: cluster.total(name) for name in _COUNTS}
    prompts = final["num_prompt_tokens"] - after["num_prompt_tokens"]
    prefix = (final["num_prefix_hit_tokens"] - after["num_prefix_hit_tokens"]) / prompts
    name = "on" if cluster.settings.cluster.affinity else "off"
    images = 1 - tiles / len(shuffled)
    return f"| {name} | {images:.0%} of {len(shuffled)} | {tiles} | {prefix:.0%} |"


_COUNTS = ("num_encoded_tiles", "num_prompt_tokens", "num_prefix_hit_tokens")


def conversations(cluster: Fleet) -> None:
    """Hold 16 conversations of four turns, four at a time."""

    def hold(number: int) -> None:
        turns = [{"role": "user", "content": f"Conversation {number}: " + "tell me of the sea and the hills. " * 8}]
        for _ in range(4):
            answer = asked(cluster.url, [{"messages": turns, "max_tokens": 24, "temperature": 0}], 1)[0]
            turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then?"}]

    for first in range(0, 16, 4):
        _together([lambda number=number: hold(number) for number in range(first, first + 4)])  # type: ignore[misc]


def killed(cluster: Fleet) -> str:
    """Kill a replica under 16 streams and return what became of them."""
    outcomes: list[Outcome] = []
    bodies = [words(f"Long {index}", max_tokens=1500, ignore_eos=True, stream=True) for index in range(16)]
    work = threading.Thread(target=lambda: outcomes.extend(asked(cluster.url, bodies, 16)))
    work.start()
    wait_for(lambda: cluster.total("num_running") == 16)
    victim = max(cluster.states(), key=lambda each: int(each["num_running"]))
    kill(victim["pid"])
    began = time.perf_counter()
    work.join()
    cluster.wait(2)
    seconds = time.perf_counter() - began
    failed = [each for each in outcomes if not each.is_whole]
    told = sum("replica" in each.error for each in failed)
    return (
        f"{victim['num_running']} of 16 streams ran on the replica that was killed; {len(failed)} failed, {told} of "
        f"them with an error event, {16 - len(failed)} were whole; two replicas again after {seconds:.0f} s"
    )


def updated(cluster: Fleet) -> str:
    """Replace all replicas under load and return how many requests failed."""
    before = {each["pid"] for each in cluster.states()}
    server = replace(cluster.settings.server, served_model_name=("nano", "nano-2"))
    with under_load(cluster.url) as outcomes:
        cluster.deploy(replace(cluster.settings, server=server))
        wait_for(lambda: not before & {each["pid"] for each in cluster.states()})
        cluster.wait(2)
    return f"{len(outcomes)} requests during a rolling update, {failed(outcomes)} failed"


def scaled(cluster: Fleet, num_events: int) -> str:
    """Add and remove replicas under load and return how many requests failed."""
    began = time.perf_counter()
    with under_load(cluster.url, 3) as outcomes:
        for event in range(num_events):
            number = 1 + event % 2
            cluster.deploy(cluster.settings, number)
            cluster.wait(number)
    cluster.deploy(cluster.settings, 2)
    cluster.wait(2)
    seconds = time.perf_counter() - began
    return f"{num_events} scale events in {seconds:.0f} s, {len(outcomes)} requests, {failed(outcomes)} failed"


def without_head() -> str:
    """End the control plane and then the whole head, and return what became of requests."""
    found = restarted(settings(2))
    return (
        f"{len(found.outcomes)} requests, {found.during} of them while the head's control plane was away, "
        f"{failed(found.outcomes)} failed; the whole head, killed and started again, answered after "
        f"{found.seconds:.0f} s"
    )


def _together(calls: Sequence[Callable[[], Any]]) -> None:
    threads = [threading.Thread(target=each) for each in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=("throughput", "hits", "kill", "update", "scale", "head"))
    parser.add_argument("--events", type=int, default=20, help="the number of scale events")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}, too")
    chosen = parser.parse_args(arguments)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    def wants(part: str) -> bool:
        return chosen.only in (None, part)

    if wants("throughput"):
        say("| replicas | tokens/s | first token, p50 (ms) | p99 (ms) | failed |\n|---|---|---|---|---|")
        with fleet(settings(1)) as cluster:
            say(throughput(cluster))
    if chosen.only == "head":
        say(f"- {without_head()}")
        return
    with fleet(settings(2)) as cluster:
        if wants("throughput"):
            say(throughput(cluster))
        if wants("hits"):
            say("\n| affinity | requests whose image was there | tiles encoded | tokens of prompts found |")
            say("|---|---|---|---|")
            say(hits(cluster))
        for part, measure in (("kill", killed), ("update", updated)):
            if wants(part):
                say(f"\n- {measure(cluster)}")
        if wants("scale"):
            say(f"- {scaled(cluster, chosen.events)}")
        if wants("hits"):
            cluster.deploy(replace(cluster.settings, cluster=replace(cluster.settings.cluster, affinity=False)))
            wait_for(lambda: all(each["num_steps"] == 0 for each in cluster.states()))
            cluster.wait(2)
            say("\n" + hits(cluster))
    if chosen.write:
        RESULTS.write_text("# Several replicas\n\n`python -m benchmarks.cluster`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
