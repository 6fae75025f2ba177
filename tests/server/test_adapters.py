"""The adapters that a server finds when it starts: of its settings, and in its folder, also after a kill."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ternvl.config import ServerConfig
from ternvl.errors import AdapterError, ConfigError, TernvlError
from ternvl.lora.store import AdapterStore
from ternvl.server import create_app
from tests.server.lora import files, make_llm, write_adapter


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"lora_dir": Path("absent")}, ConfigError, "absent"),
        ({"lora": ("one=absent",)}, AdapterError, "adapter_config.json"),
        ({"lora": ("tiny=absent",)}, AdapterError, "model itself"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], error: type[TernvlError], told: str) -> None:
    with pytest.raises(error, match=told):
        create_app(make_llm(), ServerConfig(**options))


KILLED = """
import io, sys
from pathlib import Path
from ternvl.lora.store import AdapterStore
store, given = AdapterStore(Path(sys.argv[1])), [Path(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:
    for folder in given:
        parts = [(folder / name).open("rb") for name in ("adapter_config.json", "adapter_model.safetensors")]
        with store.incoming(*parts) as incoming:
            store.commit(incoming, "often")
"""


def test_a_kill_leaves_the_old_adapter_or_the_new(tmp_path: Path) -> None:
    """Uploads of two adapters under one name, again and again, killed at some moment."""
    given = [write_adapter(tmp_path / "given" / str(seed), seed, rank=60) for seed in (1, 2)]
    (tmp_path / "dir").mkdir()
    llm = make_llm()
    whole = {llm.adapters.read("often", folder).digest for folder in given}
    for turn in range(4):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "dir"), *map(str, given)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + 0.07 * turn)
            os.kill(process.pid, signal.SIGKILL)
        app = create_app(make_llm(), ServerConfig(lora_dir=tmp_path / "dir"))
        names = [entry.name for entry in app.state.serving.adapters.pool.entries]
        assert names in ([], ["often"])
        for name in names:
            with app.state.serving.adapters.pool.use(name) as adapter:
                assert adapter.digest in whole
    assert names == ["often"]


def test_what_kills_left_is_removed_after_a_while(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    given = write_adapter(tmp_path.parent / "left" / "given", 1)
    contents = [io.BytesIO(content) for content in files(given).values()]
    with store.incoming(*contents) as incoming:
        kept = store.commit(incoming, "kept")
    hidden = tmp_path / ".ternvl"
    for age in ("old", "new"):
        (hidden / f"incoming-{age}").mkdir()
        (hidden / f"link-{age}").symlink_to("nowhere")
    long_ago = time.time() - 10_000
    for path in (hidden / "incoming-old", hidden / "link-old", kept):
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    store.remove_stale()
    assert {path.name for path in hidden.iterdir()} == {"incoming-new", "link-new", kept.name}
    assert store.folders() == {"kept": kept}
