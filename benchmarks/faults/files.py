"""Faults of files: broken keys and certificates, damaged or read-only caches, full disks, locks that do not hold."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.drill import Outcome, drill, expect, expect_all, others_during, recovery, refused_start, said
from benchmarks.faults.privileges import in_small_disk, without_override
from benchmarks.live.ask import HELLO, LONG, Load, counted
from benchmarks.live.server import ROOT, Server
from ternvl import embedded

PEM = ROOT / "tests" / "server" / "guard" / "pem"
LOCK = ROOT / "tests" / "lts" / "ternvl-nano-0.1.lock"
KEYS = "[[key]]\nname = 'team'\nkey = 'secret'\n"


@drill("the key file is broken at a reload")
def broken_keys(folder: Path) -> Outcome:
    """Write half of a key file and have it read."""
    keys = folder / "keys.toml"
    keys.write_text(KEYS)
    with Server(folder, "--api-key-file", keys, key="secret") as server:
        server.ready()

        def fault() -> None:
            keys.write_text(KEYS + "[[key]]\nname = 'te")
            server.send(signal.SIGHUP)
            said(server, "stays in force")

        seen = others_during(server, [LONG] * 2, fault)
        seconds = recovery(server, time.monotonic())
        return Outcome(f"the old keys go on; others: {counted(seen)}", said(server, "stays in force"), seconds)


@drill("the certificate is broken at a reload")
def broken_certificate(folder: Path) -> Outcome:
    """Replace the certificate by one that does not belong to its key."""
    pair = folder / "pair.pem"
    pair.write_bytes((PEM / "one.pem").read_bytes() + (PEM / "one.key").read_bytes())
    with Server(folder, "--ssl-certfile", pair, tls=True) as server:
        server.ready()

        def fault() -> None:
            pair.write_bytes((PEM / "one.pem").read_bytes() + (PEM / "two.key").read_bytes())
            server.send(signal.SIGHUP)
            said(server, "stays in force")

        seen = others_during(server, [LONG] * 2, fault)
        seconds = recovery(server, time.monotonic())
        return Outcome(f"the old certificate goes on; others: {counted(seen)}", said(server, "stays in force"), seconds)


def quantised(folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the flags of a quantised model, and the variables of a cache in `folder`."""
    return ("--quantization", "int8"), {"XDG_CACHE_HOME": str(folder / "cache")}


@drill("the cache of converted models is read-only")
def read_only_cache(folder: Path) -> Outcome:
    """Convert a model where its file cannot be kept."""
    flags, env = quantised(folder)
    (folder / "cache").mkdir(mode=0o555)
    with Server(folder, *flags, env=env, preexec_fn=without_override) as server:
        server.ready()
        line = said(server, "cannot be kept|cannot be written")
        return Outcome("started, converted in memory, answers 200", line, recovery(server, time.monotonic()))


@drill("the disk is full while a model is converted")
def full_cache(folder: Path) -> Outcome:
    """Convert a model on a disk of 1 MB."""
    flags, env = quantised(folder)
    cache = folder / "cache"
    cache.mkdir()
    with in_small_disk(cache) as mount, Server(folder, *flags, env=env, preexec_fn=mount) as server:
        server.ready()
        line = said(server, "cannot be kept|No space")
        return Outcome("started, converted in memory, answers 200", line, recovery(server, time.monotonic()))


def after_damage(folder: Path, damage: Callable[[Path], object]) -> Outcome:
    """Convert a model, damage its file in the cache and start again; the answers must be the same."""
    flags, env = quantised(folder)
    with Server(folder, *flags, env=env) as server:
        before = server.ready().ask(body=HELLO).text
        server.end()
    (kept,) = (folder / "cache").rglob("*.safetensors")
    damage(kept)
    with Server(folder, *flags, env=env) as server:
        began = time.monotonic()
        server.ready()
        expect(server.ask(body=HELLO).text == before, "the answer is another one")
        seconds = recovery(server, began)
        return Outcome("started, converted again, the same answer", said(server, "is converted again"), seconds)


@drill("a file in the cache of converted models is cut short")
def cut_cache(folder: Path) -> Outcome:
    """Cut the converted model to a half."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return after_damage(folder, damage)


@drill("a file in the cache of converted models is overwritten with noise")
def noisy_cache(folder: Path) -> Outcome:
    """Replace the converted model by bytes that mean nothing."""
    return after_damage(folder, lambda path: path.write_bytes(bytes(range(256)) * 1000))


@drill("the disk is full when an adapter is uploaded")
def full_uploads(folder: Path) -> Outcome:
    """Upload an adapter of 2 MB onto a disk of 1 MB, while others stream."""
    disk = folder / "uploads"
    disk.mkdir()
    flags = ("--lora-dir", disk, "--allow-lora-upload", "--admin-key", "admin")
    with in_small_disk(disk) as mount, Server(folder, *flags, preexec_fn=mount, key="admin") as server:
        server.ready()
        form, headers = _form({"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(2**21)})
        found = []

        def fault() -> None:
            found.append(server.ask("/v1/upload_lora_adapter", form, headers=headers))

        seen = others_during(server, [LONG] * 2, fault)
        expect(found[0].status == 503, f"{found[0].words} {found[0].message}")
        line = said(server, "cannot be stored")
        words = f"{found[0].status} ({found[0].message}); others: {counted(seen)}"
        return Outcome(words, line, recovery(server, time.monotonic()))


def _form(files: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    boundary = "drill"
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="lora_name"\r\n\r\nnew\r\n'.encode()]
    for name, content in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


def _served_to_the_end(server: Server) -> Outcome:
    """Let streams run on a server that cannot write its log, and stop it."""
    server.ready()
    with Load(server.ask, [LONG] * 3) as load:
        seconds = recovery(server, time.monotonic())
    expect_all(load.seen, "stream whole")
    expect(server.end() == 0, f"the exit status is {server.process.returncode}")
    return Outcome(f"{counted(load.seen)}; exit status 0", seconds=seconds)


@drill("the log goes to a pipe that nobody reads any more")
def closed_pipe(folder: Path) -> Outcome:
    """Give the server a pipe as its output, and close the other end."""
    cat = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    assert cat.stdin is not None
    cat.wait()
    with Server(folder, output=cat.stdin) as server:
        cat.stdin.close()
        return _served_to_the_end(server)


@drill("the log goes to a full disk (/dev/full)")
def full_log(folder: Path) -> Outcome:
    """Give the server an output that takes nothing."""
    with Path("/dev/full").open("wb") as full, Server(folder, output=full) as server:
        return _served_to_the_end(server)


@drill("--locked with one bit of the weights changed")
def flipped(folder: Path) -> Outcome:
    """Start a locked server on a model that differs from its lock in one bit."""
    model = folder / "model"
    model.mkdir()
    for path in embedded.MODEL.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            content[len(content) // 2] ^= 1
        (model / path.name).write_bytes(content)
    return refused_start(Server(folder, model, "--locked", LOCK, "--locked-packages", "warn"), "differ from the lock")


@drill("--lora-dir holds a FIFO, a loop of links and a broken adapter")
def hostile_folder(folder: Path) -> Outcome:
    """Start with a folder in which nothing is an adapter."""
    root = folder / "adapters"
    (root / "fifo").mkdir(parents=True)
    os.mkfifo(root / "fifo" / "adapter_config.json")
    os.mkfifo(root / "fifo" / "adapter_model.safetensors")
    (root / "loop").symlink_to("loop")
    (root / "broken").mkdir()
    (root / "broken" / "adapter_config.json").write_text("{")
    (root / "broken" / "adapter_model.safetensors").write_bytes(b"0" * 100)
    with Server(folder, "--lora-dir", root) as server:
        server.ready()
        lines = [said(server, f"{name}.*left out|left out.*{name}") for name in ("fifo", "loop", "broken")]
        return Outcome("started; each is left out", lines[0], recovery(server, time.monotonic()))
