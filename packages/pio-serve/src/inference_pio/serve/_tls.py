"""What connections are encrypted with: certificate and key, tried before anything is bound."""

from __future__ import annotations

import logging
import re
import ssl
import stat
import sys
import time
from typing import TYPE_CHECKING

from inference_pio.interfaces import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.getLogger("inference_pio.serve")
LOOK_S = 60.0
"""How long files are believed to be as they were."""
_ENDS_SOON_S = 14 * 24 * 3600
# Codes of OpenSSL's verification, as ``openssl verify`` names them.
_NOT_YET_VALID, _EXPIRED = 9, 10


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """What a server encrypts with: TLS 1.2 and 1.3.

    The pair is tried by a handshake in memory, so what every client would refuse is told here and not to the clients.
    Files that are renewed are taken for new connections, once they pass the same trial.

    Args:
        cert: PEM file with the certificate, and after it those of the authorities between it and a root.
        key: PEM file with its private key, not encrypted.

    Raises:
        ConfigError: A file cannot be read or is no PEM, the key is encrypted or another's, or the certificate is not
            valid now or not for servers.
    """
    context = _tried(cert, key)
    context.sni_callback = _Renewal(cert, key, context)
    return context


class _Renewal:
    """Looks at the files now and then when a client connects, and lets it shake hands with what is there.

    Args:
        cert: As :func:`tls_context`'s.
        key: The same.
        context: What was made of them last.
    """

    def __init__(self, cert: Path, key: Path, context: ssl.SSLContext) -> None:
        self._files = cert, key
        self._context = context
        self._seen = self._stamps()
        self._looked = time.monotonic()

    def __call__(self, client: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """A handshake begins."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._look()
        if client.context is not self._context:
            client.context = self._context

    def _look(self) -> None:
        self._looked, seen = time.monotonic(), self._stamps()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._context = _tried(*self._files)
        except ConfigError as error:  # perhaps one file is there and the other on its way: asked again when it changes
            LOG.warning("the TLS certificate stays as it was: %s", error)
        else:
            LOG.info("the TLS certificate was renewed")

    def _stamps(self) -> list[tuple[int, int] | None]:
        stamps: list[tuple[int, int] | None] = []
        for path in self._files:
            try:
                found = path.stat()
            except OSError:  # told when it is to be read
                stamps.append(None)
            else:
                stamps.append((found.st_mtime_ns, found.st_ino))
        return stamps


def _tried(cert: Path, key: Path) -> ssl.SSLContext:
    chain = _pem(cert, "certificate", "CERTIFICATE")
    _pem(key, "key", "[A-Z ]*PRIVATE KEY")
    _warn_if_open(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # what a client may ask for again and again
    context.set_alpn_protocols(["http/1.1"])

    def refuse() -> str:
        raise ConfigError(f"the TLS key {key} is encrypted", hint="give one that is not, readable by the server alone")

    try:
        context.load_cert_chain(cert, key, refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"the TLS key {key} is not that of the certificate {cert}") from error
        raise ConfigError(f"the TLS certificate {cert} with the key {key}: {error.reason or error}") from error
    _try(context, chain, cert)
    return context


def _pem(path: Path, what: str, kind: str) -> str:
    """The blocks of a file that are of a kind, without the words that may stand between them."""
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise ConfigError(f"the TLS {what} {path} cannot be read: {error.strerror}") from error
    blocks = re.findall(rf"-----BEGIN ({kind})-----(\n[A-Za-z0-9+/=\s:,-]+?)-----END \1-----", text.replace("\r", ""))
    if not blocks:
        raise ConfigError(f"the TLS {what} {path} holds no {what} in PEM", hint="openssl converts other formats to it")
    return "".join(f"-----BEGIN {name}-----{inner}-----END {name}-----\n" for name, inner in blocks)


def _warn_if_open(key: Path) -> None:
    if sys.platform != "win32" and key.stat().st_mode & (stat.S_IRWXO):
        LOG.warning("every user of this machine may open the TLS key %s: chmod o-rwx it", key)


def _try(server: ssl.SSLContext, chain: str, cert: Path) -> None:
    """Shake hands with a client that trusts this very certificate, so that all but its issuer is checked."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=chain)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    asking = ends[0]
    try:
        while ends:
            ends = [end for end in ends if not _advanced(end)]
    except ssl.SSLCertVerificationError as error:
        said = {_EXPIRED: "has expired", _NOT_YET_VALID: "is not valid yet"}
        problem = said.get(error.verify_code, f"is one that clients refuse: {error.verify_message}")
        raise ConfigError(f"the TLS certificate {cert} {problem}") from error
    except ssl.SSLError as error:
        raise ConfigError(f"no client can connect with the TLS certificate {cert}: {error.reason or error}") from error
    found = asking.getpeercert()
    end = str((found or {})["notAfter"])
    if ssl.cert_time_to_seconds(end) - time.time() < _ENDS_SOON_S:
        LOG.warning("the TLS certificate %s ends on %s", cert, end)


def _advanced(end: ssl.SSLObject) -> bool:
    """Whether the handshake of one end is over, after what the other has sent so far."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
