"""Signatures by which whoever is called back knows that it is this service (Standard Webhooks, symmetric: `v1`)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from server.settings import Settings
from server.telemetry import logs

PREFIX = "whsec_"
LENGTHS = range(24, 65)
"""Bytes of a secret, by the specification."""

log = logs.get(__name__)


class SigningSecrets:
    """The secrets of a file, one a line, each of which signs: a second one is a rotation. It is read again when it has changed."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError for a file that cannot be read or holds no secret. Lines are named by number only."""
        self._file = file
        self._changed = -1
        self._secrets: list[bytes] = []
        self._read()

    def sign(self, id_: str, timestamp: int, body: bytes) -> str:
        """The header `webhook-signature`, by the last secrets that could be read."""
        try:
            self._read()
        except ValueError as error:
            log.warning("webhook secrets are as they were", reason=str(error))
        signed = f"{id_}.{timestamp}.".encode() + body
        signatures = [hmac.new(secret, signed, hashlib.sha256).digest() for secret in self._secrets]
        return " ".join(f"v1,{base64.b64encode(signature).decode()}" for signature in signatures)

    def _read(self) -> None:
        try:
            changed = self._file.stat().st_mtime_ns
            if changed == self._changed:
                return
            lines = self._file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"OPSIN_WEBHOOK_SECRET_FILE cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
        secrets = [_secret(line.strip(), number) for number, line in enumerate(lines, 1) if line.strip()]
        if not secrets:
            raise ValueError(f"OPSIN_WEBHOOK_SECRET_FILE holds no line such as {PREFIX}…")
        self._secrets, self._changed = secrets, changed


def secrets_of(settings: Settings) -> SigningSecrets:
    """Raises ValueError."""
    if settings.webhook_secret_file is None:
        raise ValueError("OPSIN_WEBHOOK_HOSTS is set: name a file of secrets to sign with, OPSIN_WEBHOOK_SECRET_FILE")
    return SigningSecrets(settings.webhook_secret_file)


def _secret(line: str, number: int) -> bytes:
    try:
        secret = base64.b64decode(line.removeprefix(PREFIX), validate=True) if line.startswith(PREFIX) else b""
    except binascii.Error:
        secret = b""
    if len(secret) not in LENGTHS:
        raise ValueError(f"OPSIN_WEBHOOK_SECRET_FILE, line {number}: not {PREFIX} and the base64 of {LENGTHS[0]} to {LENGTHS[-1]} bytes")
    return secret
