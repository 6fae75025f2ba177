"""Takes from a worker process what it does not need, before it reads anything that a client has sent."""

from __future__ import annotations

from contextlib import suppress


def confine(max_memory: int, *, cpu_seconds: int | None = None) -> None:
    """Limit this process, where the system can: its memory, and no file or connection can be opened any more.

    `max_memory` is bytes of address space. With `cpu_seconds`, it ends once it has computed for so long.
    """
    try:
        import resource
    except ImportError:
        return
    limits = [(resource.RLIMIT_AS, max_memory)]
    limits += [(each, 0) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)]
    if cpu_seconds is not None:
        limits.append((resource.RLIMIT_CPU, cpu_seconds))
    for limit, most in limits:
        with suppress(ValueError, OSError):  # a system that has no such limit, or a lower one already
            resource.setrlimit(limit, (most, most))
