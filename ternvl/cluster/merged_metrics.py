"""The metrics of all replicas as one text, in which each line says whose it is."""

from __future__ import annotations

from collections.abc import Mapping


def merged(texts: Mapping[str, str]) -> str:
    """Return metrics in Prometheus' text format, given each replica's. Every sample gets the label `replica`."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica in sorted(texts):
        family = ""
        for line in texts[replica].splitlines():
            if line.startswith("# HELP ") or line.startswith("# TYPE "):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(_labelled(line, replica))
    return "".join("\n".join([*heads.get(name, ()), *lines]) + "\n" for name, lines in samples.items())


def _labelled(line: str, replica: str) -> str:
    """Return a sample with one more label, before its own."""
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f'{name}{{replica="{replica}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{replica="{replica}"}} {value}'
