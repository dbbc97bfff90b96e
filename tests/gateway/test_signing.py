"""The secrets that call-backs are signed with: without one nothing starts, and a file that changes is read again."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from server.gateway.webhooks import SigningSecrets
from tests.support.processes import opsin

SECRETS = [f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2)]


def test_service_without_signing_secret_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    for content, words in ((None, "cannot be read"), ("", "holds no line"), (f"{SECRETS[0]}\nwhsec_short\n", "line 2")):
        if content is not None:
            file.write_text(content)
        hosts = {"OPSIN_WEBHOOK_HOSTS": '["example.org"]', "OPSIN_WEBHOOK_SECRET_FILE": str(file)}
        ran = opsin("serve", "--bundles", tmp_path, "--port", "0", **hosts)
        assert (ran.returncode, words in ran.stderr, "short" in ran.stderr) == (2, True, False), ran.stderr
    assert "OPSIN_WEBHOOK_SECRET_FILE" in opsin("serve", "--port", "0", OPSIN_WEBHOOK_HOSTS='["example.org"]').stderr


async def test_second_secret_signs_after_reload_despite_broken_file(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(SECRETS[0])
    signing = SigningSecrets(file)
    alone = signing.sign("msg_1", 5, b"{}")
    for content, signatures in (("\n".join(SECRETS), 2), ("whsec_broken", 2), (SECRETS[1], 1)):
        file.write_text(content)
        os.utime(file, ns=(0, 0))  # a copy may be as old as the file before it
        await signing.reload()
        assert len(signing.sign("msg_1", 5, b"{}").split()) == signatures
    assert signing.sign("msg_1", 5, b"{}") != alone
    last = signing.sign("msg_1", 5, b"{}")
    file.unlink()
    os.mkfifo(file)
    await signing.reload()  # opening it would wait for a writer
    assert signing.sign("msg_1", 5, b"{}") == last
    with pytest.raises(ValueError, match="not a regular file"):
        SigningSecrets(file)
