"""Webhooks at the end of jobs: signed (Standard Webhooks, symmetric: `v1`) and delivered, without delaying a job."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from server.gateway.auth.key_file import read_file
from server.gateway.jobs import service
from server.http.outbound import CONNECTION_ERRORS, OutboundClient
from server.http.url_allowlist import AddressNotAllowed
from server.queue.connect import RedisUnavailable
from server.queue.gateway.record_store import DueWebhook, WebhookQueue
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.metrics import GatewayMetrics

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


AT_ONCE = 32
GONE = 410
"""Status by which the receiver wants no more."""
REVOKED = "its API key is revoked"
"""Reason to retry anyway: key files reach the machines of gateways at different times."""

log = logs.get(__name__)


@dataclass(frozen=True)
class WebhookTimings:
    """Timings in seconds; the defaults are the service's contract, tests shorten them."""

    look: float = 1.0
    lease: float = 30.0
    timeout: float = 10.0
    tries: tuple[float, ...] = (0.0, 10.0, 60.0, 300.0, 900.0, 2700.0)
    """Delays of the attempts after the end of the job."""


class WebhookSender:
    """A sender of webhooks, for one event loop."""

    def __init__(
        self,
        due: WebhookQueue,
        outbound: OutboundClient,
        secrets: SigningSecrets,
        metrics: GatewayMetrics,
        answers: Callable[[str], bool],
        timings: WebhookTimings | None = None,
    ) -> None:
        """answers: returns whether the API key of this name may still receive results."""
        self._due = due
        self._outbound = outbound
        self._secrets = secrets
        self._metrics = metrics
        self._answers = answers
        self._timings = timings or WebhookTimings()
        self.close = outbound.close

    async def send_forever(self) -> None:
        """Send webhooks until cancelled, which leaves unfinished ones to another gateway."""
        async with asyncio.TaskGroup() as group:
            sending: dict[asyncio.Task[None], str] = {}
            while True:
                found = await self._claim(AT_ONCE - len(sending), Counter(sending.values())) if len(sending) < AT_ONCE else []
                if found:
                    await self._secrets.reload()
                for due in found:
                    task = group.create_task(self._send(due))
                    sending[task] = due.host
                    task.add_done_callback(sending.pop)
                if sending:  # each end makes room for another
                    await asyncio.wait(sending, timeout=self._timings.look, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(self._timings.look)

    async def _claim(self, max_count: int, in_flight: Mapping[str, int]) -> list[DueWebhook]:
        try:
            found, dropped = await self._due.claim(max_count, self._timings.lease, in_flight)
        except RedisUnavailable:
            return []
        except Exception:
            log.exception("webhooks that are due cannot be read")
            return []
        if dropped:
            self._metrics.webhooks.labels("dropped").inc(dropped)
            log.warning("webhooks dropped: too many wait, or they cannot be read", dropped=dropped)
        return found

    async def _send(self, due: DueWebhook) -> None:
        try:
            reason = await self._try(due)
        except Exception:
            log.exception("a webhook failed")
            reason = "internal error"
        tries, again, gap = self._timings.tries, None, 0.0
        if reason not in (None, str(GONE)) and due.attempt < len(tries):
            again, gap = tries[due.attempt], tries[due.attempt] - tries[due.attempt - 1]
        outcome = "delivered" if reason is None else "given_up" if again is None else "failed"
        self._metrics.webhooks.labels(outcome).inc()
        if reason is not None:
            log.info("webhook not delivered", attempt=due.attempt, reason=reason, given_up=again is None, request_id=due.record.request_id)
        try:
            await self._due.settle(due, again, gap)
        except RedisUnavailable:
            pass  # its lease runs out
        except Exception:
            log.exception("the outcome of a webhook cannot be recorded")

    async def _try(self, due: DueWebhook) -> str | None:
        """Try to deliver a webhook. Return the reason if it was not delivered."""
        if not self._answers(due.record.key_name):
            return REVOKED
        body = msgspec.json.encode(service.job_document(due.record))
        id_, timestamp = f"msg_{hashlib.sha256(due.record.id.encode()).hexdigest()[:32]}", int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": id_,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self._secrets.sign(id_, timestamp, body),
        }
        if due.record.traceparent:
            headers["traceparent"] = due.record.traceparent
        try:
            async with asyncio.timeout(self._timings.timeout):
                async with self._outbound.request("POST", self._outbound.parse(due.url), headers, body) as response:
                    return None if 200 <= response.status < 300 else str(response.status)
        except (AddressNotAllowed, *CONNECTION_ERRORS) as error:
            return str(error) or type(error).__name__
