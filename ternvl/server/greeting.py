"""What `ternvl serve` prints once it listens: what it has loaded, where it is served, and a request to try."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ternvl.engine.engine import Engine
from ternvl.fused.replace import is_quantized
from ternvl.kernels.loader import instruction_set
from ternvl.kernels.stage_types import Format
from ternvl.model.internvl import InternVL, num_parameters
from ternvl.quant.guard import formats_for, stages
from ternvl.server.serving import Serving
from ternvl.terminal import shown_bytes, shown_count

if TYPE_CHECKING:
    from ternvl.llm import LLM


def greeting(serving: Serving, sockets: Sequence[socket.socket]) -> str:
    """Return the text: a line for each fact, the addresses, and a command that can be pasted into a shell."""
    config, name = serving.config, serving.names.served[0]
    scheme = "http" if config.ssl_certfile is None else "https"
    url, *others = (f"{scheme}://{_shown(sock)}" for sock in sockets)
    rows = [*_loaded(serving.llm, name), ("Keys", _keys(serving))]
    page = f"The playground, a page for your browser: {url}/\n" if config.playground else ""
    metrics = "".join(f"Its metrics are served at {other}/metrics\n" for other in others)
    return (
        "".join(f"\n{label + ':':<11}{text}" for label, text in rows)
        + f"\n\n{name} is served at {url}/v1\n{page}{metrics}Try it:\n\n{_command(url, serving.keys.is_closed)}\n"
    )


def _loaded(llm: LLM, name: str) -> Iterator[tuple[str, str]]:
    model, engine = llm.engine.model, llm.engine
    yield "Model", f"{name}, {shown_count(num_parameters(model.config))} parameters"
    yield "Weights", _weights(model)
    if names := [entry.name for entry in llm.adapters.entries]:
        yield "Adapters", ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    yield "Context", f"{engine.config.max_model_len:,} tokens"
    if isinstance(engine, Engine):
        yield "KV cache", f"{shown_bytes(engine.kv_cache_bytes)} holds {engine.kv_cache_tokens:,} tokens"
    yield "Runs on", _device(model.device)


def _weights(model: InternVL) -> str:
    """Return the precision of the weights, their size in memory, and what the guard left in more bits."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()
    size = shown_bytes(sum(tensor.nbytes for tensor in tensors))
    if not is_quantized(model):
        largest = max(tensors, key=lambda tensor: tensor.nbytes)
        return f"{str(largest.dtype).removeprefix('torch.')}, {size}, not quantised"
    formats = {name: stage.format for name, stage in stages(model)}
    if own := sum(format is Format.AFFINE4 for format in formats.values()):
        others = Counter(format.name.lower() for format in formats.values() if format is not Format.AFFINE4)
        text = ", ".join(f"{count} in {name}" for name, count in sorted(others.items()))
        return f"{own} layers in the checkpoint's 4 bits, {text}, {size}"
    scheme = "int4" if Format.INT4 in formats.values() else "int8"
    wanted = {name: formats_for(name, scheme)[:1] for name in formats}
    kept = Counter(formats[name].name.lower() for name, best in wanted.items() if best and formats[name] != best[0])
    finer = ": " + ", ".join(f"{count} in {name}" for name, count in sorted(kept.items())) if kept else ""
    total = sum(map(bool, wanted.values()))
    return f"{scheme}, {size}; the guard kept {kept.total() or 'none'} of {total} layers in more bits{finer}"


def _device(device: torch.device) -> str:
    used = instruction_set(device)
    if device.type != "cpu":
        return used
    threads = torch.get_num_threads()
    kernels = "torch, because there are no native kernels" if used == "torch" else f"kernels for {used}"
    return f"{threads} thread{'s' if threads != 1 else ''}, {kernels}"


def _keys(serving: Serving) -> str:
    if not serving.keys.is_closed:
        return "none needed"
    count = len(serving.keys.keys.all)
    return f"needed; {count} {'is' if count == 1 else 'are'} in force"


def _command(url: str, needs_key: bool) -> str:
    body = '{"messages": [{"role": "user", "content": "Name the european capitals"}]}'
    key = ' \\\n    -H "Authorization: Bearer $TERNVL_API_KEY"' if needs_key else ""
    return f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n    -d '{body}'"


def _shown(sock: socket.socket) -> str:
    """Return the address of a socket as a client of this machine writes it."""
    host, port = sock.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host) + f":{port}"
