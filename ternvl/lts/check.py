"""Refuses a model that differs from its lock: in its files, its settings, its packages or its instruction set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternvl.config import LoadingConfig
from ternvl.errors import ConfigError, LockError
from ternvl.kernels.loader import VARIABLE
from ternvl.lora.locked import LockedAdapters, differences
from ternvl.lts import files, lock, packages, settings
from ternvl.lts.settings import LoadedModel

logger = logging.getLogger(__name__)

POLICIES = ("refuse", "warn")


def refuse_lock(loading: LoadingConfig) -> None:
    """Raise ConfigError if a lock is given for a model that is built already."""
    if loading.locked is not None:
        raise ConfigError(f"locked is {str(loading.locked)!r}, but a model that is built already has no files.")


@dataclass(frozen=True, slots=True)
class LockGuard:
    """A lock that a model is held to."""

    path: Path
    lock: lock.Lock

    @classmethod
    def of(cls, loading: LoadingConfig) -> LockGuard | None:
        """Return the guard of a configuration; None if it names no lock.

        Raises LockError for a lock that cannot be used, and for packages of other versions unless `locked_packages` is
        "warn"; ConfigError for an invalid setting.
        """
        if loading.locked_packages not in POLICIES:
            raise ConfigError(f"locked_packages is {loading.locked_packages!r}; it is one of {', '.join(POLICIES)}.")
        if loading.locked is None:
            if loading.locked_packages != "refuse":
                raise ConfigError(
                    f"locked_packages is {loading.locked_packages!r}, but there is no lock (--locked FILE)."
                )
            return None
        guard = cls(loading.locked, lock.read(loading.locked))
        guard.check_packages(only_warn=loading.locked_packages == "warn")
        return guard

    @property
    def adapters(self) -> LockedAdapters:
        """The adapters that may be loaded."""
        return LockedAdapters(self.lock.adapters)

    def check_packages(self, *, only_warn: bool) -> None:
        """Log packages of other versions, or raise LockError for them."""
        faults = package_differences(self.lock)
        if not only_warn:
            self.refuse(faults, "Packages", "; --locked-packages warn starts nevertheless")
        for fault in faults:
            logger.warning("A package differs from the lock %s: %s", self.path, fault)

    def check_files(self, folder: Path) -> None:
        """Hash the files of a checkpoint. Raises LockError, which names each file that differs."""
        self.refuse(differences(self.lock.files, files.states(files.model_files(folder))), f"Files of {folder}")

    def check_model(self, loaded: LoadedModel, *, any_instruction_set: bool = False) -> None:
        """Raise LockError if the settings of a loaded model, its converted file or its kernels differ."""
        self.refuse(setting_differences(self.lock.settings, loaded.settings()), "Settings")
        if loaded.quantized_file is not None:
            found = files.states({"the quantised file": loaded.quantized_file})
            assert self.lock.quantized is not None  # the quantisation is a setting
            hint = f"; the lock is for a copy of the file {loaded.quantized_file} of the machine that made it"
            self.refuse(differences({"the quantised file": self.lock.quantized}, found), "Files", hint)
        if not any_instruction_set and loaded.instruction_set not in self.lock.instruction_sets:
            known = ", ".join(self.lock.instruction_sets) or "none"
            fault = f"the instruction set: expected one of {known}, found {loaded.instruction_set}"
            self.refuse([fault], "Kernels", f"; {VARIABLE} chooses another instruction set")

    def refuse(self, faults: Sequence[str], what: str, hint: str = "") -> None:
        """Raise LockError if there are any faults; `what` names their kind."""
        if faults:
            listed = "; ".join(faults)
            raise LockError(f"{what} differ from the lock {self.path}: {listed}{hint}.", tuple(faults))


def package_differences(locked: lock.Lock) -> list[str]:
    """Return one text for each package of another version, and for another release line of ternvl."""
    line = packages.line_difference(locked.ternvl)
    return [*([line] if line else []), *differences(locked.packages, packages.used(), "no such package")]


def setting_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return one text for each setting that differs."""
    return differences(settings.shown(expected), settings.shown(found), "nothing")
