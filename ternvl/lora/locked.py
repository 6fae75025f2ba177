"""The adapters that a lock file allows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ternvl.errors import AdapterError, LockError
from ternvl.lora.adapter import Adapter
from ternvl.types import FileState


@dataclass(frozen=True, slots=True)
class LockedAdapters:
    """The files of the adapters of a lock, by the adapter's name and the file's."""

    files: Mapping[str, Mapping[str, FileState]]

    def check(self, adapter: Adapter) -> None:
        """Raise AdapterError unless the lock has the files of an adapter and, if it has its name, under this name."""
        expected = self.files.get(adapter.name)
        if expected is None and adapter.files not in self.files.values():
            known = ", ".join(sorted(self.files)) or "none"
            message = f"The adapter {adapter.name} is not in the lock, which has {known}."
            raise AdapterError(message, code="adapter_not_locked")
        faults = differences(expected or adapter.files, adapter.files)
        if faults:
            message = f"The adapter {adapter.name} differs from the lock: {'; '.join(faults)}."
            raise AdapterError(message, code="adapter_not_locked")

    def check_complete(self, names: Collection[str]) -> None:
        """Raise LockError if an adapter of the lock is not among `names`, the adapters that are loaded."""
        missing = [name for name in sorted(self.files) if name not in names]
        if missing:
            listed = ", ".join(missing)
            faults = tuple(f"the adapter {name} is not loaded" for name in missing)
            raise LockError(f"The lock has adapters that are not loaded: {listed}; --lora NAME=PATH loads one.", faults)


def differences(expected: Mapping[str, object], found: Mapping[str, object], absent: str = "no such file") -> list[str]:
    """Return one text for each name whose values differ, sorted by name; `absent` stands for a missing value."""
    return [
        f"{name}: expected {expected.get(name, absent)}, found {found.get(name, absent)}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
