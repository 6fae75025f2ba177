"""Lists the licences of the packages that serving uses, and fails for one that is not on the list of allowed ones.

    python scripts/licences.py

The licences are those that the installed packages state. `docs/release.md` says what to do about a new one.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import metadata

from ternvl.lts import packages

ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC",
    "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip
"""SPDX identifiers. All may be used beside Apache-2.0 code; MPL-2.0 asks for the source of changed files."""
_NAMES = {
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""SPDX identifiers by the names that packages without an SPDX expression state."""


def expression(name: str) -> str:
    """Return the SPDX expression of an installed package's licence; empty if it states none that is known.

    The field `License-Expression` goes first, then a short `License`, then the classifiers.
    """
    stated = metadata(name)
    if given := stated.get("License-Expression"):
        return str(given)
    short = stated.get("License") or ""
    found = [_NAMES.get(short, short)] if 0 < len(short) < 60 else []
    if not found:
        classifiers = stated.get_all("Classifier") or []
        found = [_NAMES.get(each.split(" :: ")[-1], "") for each in classifiers if each.startswith("License :: ")]
    return " AND ".join(filter(None, found))


def refused(licence: str) -> list[str]:
    """Return the parts of an SPDX expression that are not allowed. Of alternatives, one must be allowed."""
    faults = []
    for part in re.split(r"\s+AND\s+", licence.replace("(", "").replace(")", "")):
        if not ALLOWED & set(re.split(r"\s+OR\s+", part)):
            faults.append(part or "no licence")
    return faults


def used() -> dict[str, str]:
    """Return the licence of each package that serving uses."""
    return {name: expression(name) for name in packages.used() if name != "python"}


def main(arguments: list[str] | None = None) -> int:
    """Print the list and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.parse_args(arguments)
    faults = []
    for name, licence in used().items():
        print(f"{name:<24}{metadata(name)['Version']:<16}{licence}")
        faults += [f"{name}: {part} is not allowed." for part in refused(licence)]
    print("\n".join(faults), file=sys.stderr, end="\n" * bool(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
