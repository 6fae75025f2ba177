"""The certificate of HTTPS, which is checked before it is used and may be replaced while the server runs."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.files import read_regular

_MAX_BYTES = 1_000_000
_ROUNDS = 10
"""More than the messages of a handshake."""


class Certificate:
    """A certificate chain with its private key, as a context for connections."""

    def __init__(self, certfile: Path, keyfile: Path | None, password: str | None) -> None:
        """Raises ConfigError for files that cannot be used: unreadable, of different keys, not valid now."""
        self.paths = (certfile,) if keyfile is None else (certfile, keyfile)
        self._password = password or ""
        self._current, self._until = self._read()
        self.context = self._current
        """The context for listening. Each connection takes the pair that was read last."""
        self.context.sni_callback = self._choose

    def reload(self) -> str:
        """Read the files again and return what is in force. Raises ConfigError, and then nothing has changed."""
        self._current, self._until = self._read()
        return f"the certificate is valid until {self._until}"

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _read(self) -> tuple[ssl.SSLContext, str]:
        contents = [_content(path) for path in self.paths]
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a function for the password, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(self.paths[0], self.paths[-1], lambda: self._password)
            return context, _valid_until(context, self.paths[0])
        except (ssl.SSLError, OSError, ValueError) as error:
            names = " and ".join(map(str, self.paths))
            raise ConfigError(f"{names} cannot be used for HTTPS: {_reason(error, contents)}.") from None


def certificate_of(config: ServerConfig) -> Certificate | None:
    """Return the certificate of a configuration; None without one. Raises ConfigError."""
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError("ssl_keyfile is given without ssl_certfile, the certificate that belongs to it.")
        return None
    return Certificate(config.ssl_certfile, config.ssl_keyfile, config.ssl_keyfile_password)


def _valid_until(context: ssl.SSLContext, certfile: Path) -> str:
    """Return the end of a certificate's validity. Raises ssl.SSLError for one that no client could accept now.

    The standard library reads certificates only in handshakes, so this makes one in memory, with a client that trusts
    this very certificate.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certfile)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_ROUNDS):
        for side in (client, server):
            _shake(side)
    found: dict[str, Any] = client.getpeercert() or {}
    return str(found.get("notAfter", "an unknown time"))


def _shake(side: ssl.SSLObject) -> None:
    with suppress(ssl.SSLWantReadError):
        side.do_handshake()


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, limit=_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


def _reason(error: Exception, contents: Sequence[bytes]) -> str:
    """Return why a certificate and its key, the first and the last of `contents`, cannot be used."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if b"-----BEGIN CERTIFICATE-----" not in contents[0]:
        return "there is no certificate in PEM form"
    if b"PRIVATE KEY-----" not in contents[-1]:
        return "there is no private key in PEM form"
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return "the private key does not belong to the certificate"
    if b"ENCRYPTED" in contents[-1]:
        return "the password of the private key is wrong or missing (TERNVL_SSL_KEYFILE_PASSWORD)"
    return getattr(error, "strerror", None) or str(error)
