"""Faults with adapters: folders that vanish, damaged files, weights that overflow, changes under load."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.faults.drill import Outcome, drill, expect, expect_all, others_during, recovery, said
from benchmarks.live.ask import HELLO, LONG, Load, Seen, counted
from benchmarks.live.server import Server
from ternvl.embedded import adapter_folder

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
WEIGHTS = "adapter_model.safetensors"


def copy(folder: Path, name: str, of: str = "french") -> Path:
    """Copy an embedded adapter to a folder below another one."""
    target = folder / name
    shutil.copytree(adapter_folder(Path(of)), target)
    return target


def load(server: Server, name: str, folder: Path) -> Seen:
    """Load an adapter."""
    return server.ask(LOAD, {"lora_name": name, "lora_path": str(folder)})


@drill("the folder of an adapter vanishes and comes back")
def vanished(folder: Path) -> Outcome:
    """Remove the folder of an adapter that is not in memory, ask for it, and put the folder back."""
    root = folder / "adapters"
    one, hidden = copy(root, "one"), folder / "hidden"
    copy(root, "two", "inventory")
    with Server(folder, "--lora-dir", root, "--max-loras", "1") as server:
        server.ready()
        expect(server.ask(body={**HELLO, "model": "two"}).status == 200, "the adapter two is not answered")
        one.rename(hidden)
        found: list[Seen] = []
        others = [LONG, {**LONG, "model": "two"}]
        # `two` is released first, because one adapter fits into memory.
        seen = others_during(server, others[:1], lambda: found.append(server.ask(body={**HELLO, "model": "one"})))
        expect(found[0].status == 400, f"{found[0].words} {found[0].message}")
        hidden.rename(one)
        began = time.monotonic()
        expect(server.ask(body={**HELLO, "model": "one"}).status == 200, "the adapter is not answered again")
        words = f"400 for that adapter ({found[0].message}), then 200; others: {counted(seen)}"
        return Outcome(words.replace(f"{folder}/", ""), said(server, "400 in"), time.monotonic() - began)


@drill("a damaged adapter is loaded in place of a good one")
def damaged(folder: Path) -> Outcome:
    """Load a file that is cut short under the name of an adapter in use."""
    good, bad = copy(folder, "good"), copy(folder, "bad")
    content = (bad / WEIGHTS).read_bytes()
    (bad / WEIGHTS).write_bytes(content[: len(content) // 2])
    with Server(folder, "--allowed-lora-dirs", folder) as server:
        server.ready()
        expect(load(server, "french", good).status == 200, "the good adapter is refused")
        before = server.ask(body={**HELLO, "model": "french"}).text
        found: list[Seen] = []
        seen = others_during(
            server, [LONG, {**LONG, "model": "french"}], lambda: found.append(load(server, "french", bad))
        )
        expect(found[0].status == 400, f"{found[0].words} {found[0].message}")
        began = time.monotonic()
        expect(server.ask(body={**HELLO, "model": "french"}).text == before, "the good adapter answers otherwise")
        words = f"400 ({found[0].message}); the good one still answers; others: {counted(seen)}"
        return Outcome(words, said(server, "ternvl.audit"), time.monotonic() - began)


@drill("adapters loaded and unloaded 20 times under load")
def churned(folder: Path) -> Outcome:
    """Load, use and unload adapters while others stream."""
    given = copy(folder, "given")
    with Server(folder, "--allowed-lora-dirs", folder, "--lora", "inventory") as server:
        server.ready()
        found: list[Seen] = []

        def fault() -> None:
            for _ in range(20):
                found.append(load(server, "given", given))
                found.append(server.ask(body={**HELLO, "model": "given"}))
                found.append(server.ask(UNLOAD, {"lora_name": "given"}))

        seen = others_during(server, [LONG, {**LONG, "model": "inventory"}, LONG], fault)
        expect_all(found, "200")
        words = f"{counted(found)}; others: {counted(seen)}, longest gap {max(each.gap for each in seen):.2f} s"
        return Outcome(words, said(server, "ternvl.audit"), recovery(server, time.monotonic()))


@drill("an adapter is unloaded with abort while it answers")
def aborted(folder: Path) -> Outcome:
    """Unload an adapter whose streams run; those of others must be whole."""
    with Server(folder, "--lora", "french", "--lora", "inventory") as server:
        server.ready()
        others = [LONG, {**LONG, "model": "inventory"}]
        with Load(server.ask, [{**LONG, "model": "french", "max_tokens": 5000}] * 3) as load:
            seen = others_during(server, others, lambda: expect(_unload(server).status == 200, "it is not unloaded"))
        expect_all(load.seen, "stream ended by an error event")
        words = f"its own: {counted(load.seen)} ({load.seen[0].message}); others: {counted(seen)}"
        return Outcome(words, said(server, "ternvl.audit"), recovery(server, time.monotonic()))


def _unload(server: Server) -> Seen:
    return server.ask(UNLOAD, {"lora_name": "french", "abort": True})


def scaled(folder: Path, factor: float) -> Path:
    """Multiply the second matrices of an adapter."""
    tensors = load_file(folder / WEIGHTS)
    made = {name: tensor.float() * (factor if "lora_B" in name else 1.0) for name, tensor in tensors.items()}
    save_file(made, folder / WEIGHTS)
    return folder


@drill("an adapter with weights that are NaN")
def not_numbers(folder: Path) -> Outcome:
    """Load an adapter whose weights are no numbers."""
    bad = scaled(copy(folder, "bad"), float("nan"))
    with Server(folder, "--allowed-lora-dirs", folder) as server:
        server.ready()
        refused = load(server, "bad", bad)
        expect(refused.status == 400, f"{refused.words} {refused.message}")
        return Outcome(f"400 ({refused.message})", said(server, "ternvl.audit"), recovery(server, time.monotonic()))


@drill("an adapter whose logits overflow")
def overflowing(folder: Path) -> Outcome:
    """Ask an adapter with finite weights whose products are not; only its requests may end."""
    bad = scaled(copy(folder, "bad"), 1e34)
    with Server(folder, "--lora", f"bad={bad}") as server:
        server.ready()
        found: list[Seen] = []
        seen = others_during(
            server, [LONG] * 3, lambda: found.extend(server.ask(body={**HELLO, "model": "bad"}) for _ in range(3))
        )
        expect_all(found, "500")
        words = f"{counted(found)} for its own requests ({found[0].message}); others: {counted(seen)}"
        line = server.line("ERROR|finite|NaN", 10)
        expect(bool(line), "the log has no line")
        return Outcome(words, line, recovery(server, time.monotonic()))
