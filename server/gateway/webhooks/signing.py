"""Signatures by which receivers of webhooks recognise this service (Standard Webhooks, symmetric: `v1`)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from server.gateway.auth.key_file import read_file
from server.settings import Settings
from server.telemetry import logs

PREFIX = "whsec_"
SECRET_LENGTHS = range(24, 65)
"""Lengths of a secret in bytes, by the specification."""

log = logs.get(__name__)


class SigningSecrets:
    """The secrets of a file, one a line, each of which signs: a second one is a rotation."""

    def __init__(self, file: Path) -> None:
        """Read the file. Raises ValueError if it cannot be read or holds no secret. Lines are named by number only."""
        self._file = file
        self._secrets = _read(file)

    def sign(self, id_: str, timestamp: int, body: bytes) -> str:
        """Return the header `webhook-signature`, by the last secrets that could be read."""
        signed = f"{id_}.{timestamp}.".encode() + body
        signatures = [hmac.new(secret, signed, hashlib.sha256).digest() for secret in self._secrets]
        return " ".join(f"v1,{base64.b64encode(signature).decode()}" for signature in signatures)

    async def reload(self) -> None:
        """Reload the file; if it cannot be read, the last secrets remain."""
        try:
            self._secrets = await asyncio.to_thread(_read, self._file)
        except ValueError as error:
            log.warning("webhook secrets file unreadable; the last secrets remain valid", reason=str(error))


def load_secrets(settings: Settings) -> SigningSecrets:
    """Load the secrets of the settings. Raises ValueError."""
    if settings.webhook_secret_file is None:
        raise ValueError("OPSIN_WEBHOOK_HOSTS is set: name a file of secrets to sign with, OPSIN_WEBHOOK_SECRET_FILE")
    return SigningSecrets(settings.webhook_secret_file)


def _read(file: Path) -> list[bytes]:
    """Read the secrets of a file. Raises ValueError."""
    try:
        lines = read_file(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"OPSIN_WEBHOOK_SECRET_FILE cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    secrets = [_secret(line.strip(), number) for number, line in enumerate(lines, 1) if line.strip()]
    if not secrets:
        raise ValueError(f"OPSIN_WEBHOOK_SECRET_FILE holds no line such as {PREFIX}…")
    return secrets


def _secret(line: str, number: int) -> bytes:
    try:
        secret = base64.b64decode(line.removeprefix(PREFIX), validate=True) if line.startswith(PREFIX) else b""
    except binascii.Error:
        secret = b""
    if len(secret) not in SECRET_LENGTHS:
        raise ValueError(
            f"OPSIN_WEBHOOK_SECRET_FILE, line {number}: not {PREFIX} and the base64 of {SECRET_LENGTHS[0]} to {SECRET_LENGTHS[-1]} bytes"
        )
    return secret
