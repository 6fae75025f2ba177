"""The certificate alone: which pairs are refused, and which one a connection gets.

The pairs in `pem/` were made for these tests and protect nothing.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.tls import Certificate, certificate_of
from ternvl.server.guard.validate import check_config

PEM = Path(__file__).parent / "pem"


def shown_to(trusted: Path, context: ssl.SSLContext, server_name: str | None) -> bool:
    """Whether a client that trusts one certificate accepts the server's, in a handshake in memory."""
    trusting = ssl.create_default_context(cafile=trusted)
    trusting.check_hostname = server_name is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=server_name)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return True


@pytest.mark.parametrize(
    ("certificate", "key", "password", "says"),
    [
        ("one.pem", "two.key", None, "does not belong to the certificate"),
        ("one.pem", None, None, "no private key in PEM form"),
        ("one.key", "one.key", None, "no certificate in PEM form"),
        ("one.pem", "locked.key", None, "password of the private key is wrong or missing"),
        ("one.pem", "locked.key", "shut", "password of the private key is wrong or missing"),
        ("expired.pem", "one.key", None, "certificate has expired"),
        ("early.pem", "one.key", None, "certificate is not yet valid"),
        ("absent.pem", "one.key", None, "absent.pem cannot be read: No such file"),
        ("one.pem", "absent.key", None, "absent.key cannot be read: No such file"),
    ],
)
def test_a_pair_that_cannot_be_used_is_refused_at_the_start(
    certificate: str, key: str | None, password: str | None, says: str
) -> None:
    config = ServerConfig(
        ssl_certfile=PEM / certificate, ssl_keyfile=None if key is None else PEM / key, ssl_keyfile_password=password
    )
    with pytest.raises(ConfigError, match=says) as refusal:
        check_config(config)
    assert "shut" not in str(refusal.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        Certificate(tmp_path / "fifo", None, None)
    with pytest.raises(ConfigError, match="without ssl_certfile"):
        check_config(ServerConfig(ssl_keyfile=PEM / "one.key"))
    assert certificate_of(ServerConfig()) is None


def test_one_file_may_hold_both_and_a_key_its_password(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((PEM / "one.pem").read_bytes() + (PEM / "one.key").read_bytes())
    assert shown_to(PEM / "one.pem", Certificate(both, None, None).context, "localhost")
    assert shown_to(PEM / "one.pem", Certificate(PEM / "one.pem", PEM / "locked.key", "open").context, "localhost")
    assert "open" not in repr(ServerConfig(ssl_keyfile_password="open"))


@pytest.mark.parametrize("server_name", ["localhost", None])
def test_connections_get_the_pair_that_was_read_last(tmp_path: Path, server_name: str | None) -> None:
    paths = tmp_path / "server.pem", tmp_path / "server.key"

    def write(certificate: str, key: str) -> None:
        paths[0].write_bytes((PEM / certificate).read_bytes())
        paths[1].write_bytes((PEM / key).read_bytes())

    def shown(certificate: Certificate) -> list[bool]:
        return [shown_to(PEM / name, certificate.context, server_name) for name in ("one.pem", "two.pem")]

    write("one.pem", "one.key")
    certificate = Certificate(*paths, None)
    assert shown(certificate) == [True, False]
    write("two.pem", "two.key")
    assert shown(certificate) == [True, False], "until they are read again"
    assert "2126" in certificate.reload()
    assert shown(certificate) == [False, True]
    write("one.pem", "two.key")
    with pytest.raises(ConfigError, match="does not belong"):
        certificate.reload()
    assert shown(certificate) == [False, True], "a broken pair changes nothing"
