"""URLs that try to reach private addresses through a gateway (SSRF)."""

from __future__ import annotations

UNRESOLVABLE = "https://nowhere.invalid/a.png"
LOOPBACK = ("127.0.0.1", "127.1", "2130706433", "0177.0.0.1", "0x7f000001", "0.0.0.0", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::]")
"""Ways to write this machine, all of which an operator has listed by mistake."""
INSIDE = (
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "198.18.0.1",
    "192.0.0.192",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[ff02::1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a00:1]",
    "[::127.0.0.1]",
    "[2001::7f00:1]",
    "[2001:db8::1]",
    "[fec0::1]",
)
"""Addresses that are not of the public internet, listed as well."""


def hostile(port: int) -> list[str]:
    """URLs of this machine, of networks behind it, and such as are read in two ways."""
    nearby = f"localhost:{port}"
    odd = [
        f"http://{nearby}/red/1",
        f"ftp://{nearby}/red/1",
        f"HTTP://{nearby}/red/1",
        f"gopher://{nearby}/_GET",
        "file:///etc/passwd",
        "data:image/png;base64,iVBORw0KGgo=",
        f"//{nearby}/red/1",
        f"{nearby}/red/1",
        "/red/1",
        "",
        "https://",
        "https:///red/1",
        f"https:/{nearby}/red/1",
        f"https:{nearby}/red/1",
        f"https://{nearby.replace('localhost', 'LOCALHOST.')}/red/1",
        f"https://localhost.:{port}/red/1",
        f"https://nowhere.invalid@{nearby}/red/1",
        f"https://nowhere.invalid:443@{nearby}/red/1",
        f"https://user:secret@{nearby}/red/1",
        f"https://@{nearby}/red/1",
        f"https://{nearby}@nowhere.invalid/red/1",
        f"https://nowhere.invalid#@{nearby}/red/1",
        f"https://nowhere.invalid?@{nearby}/red/1",
        f"https://nowhere.invalid\\@{nearby}/red/1",
        f"https://nowhere.invalid\\.{nearby}/red/1",
        f"https://nowhere.invalid\t@{nearby}/red/1",
        f" https://{nearby}/red/1",
        f"https://{nearby}/red/1\r\nHost: inside",
        f"https://{nearby}/red/1\x00",
        f"https://local host:{port}/red/1",
        f"https://%6cocalhost:{port}/red/1",
        f"https://localhos\uff54:{port}/red/1",
        f"https://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}/red/1",
        "https://127.0.0.1\u3002nowhere.invalid/",
        "https://localhost:0/red/1",
        "https://localhost:99999/red/1",
        "https://localhost:-1/red/1",
        f"https://localhost:0{port}/red/1",
        f"https://localhost:{port}:443/red/1",
        "https://localhost:/red/1",
        "https://localhost:22/red/1",
        "https://localhost:6379/red/1",
        f"https://[::1%25lo]:{port}/red/1",
        f"https://[::1:{port}/red/1",
        f"https://[v1.localhost]:{port}/red/1",
        UNRESOLVABLE,
    ]
    named = [f"https://{name}:{port}/red/1" for name in (*LOOPBACK, *INSIDE)]
    return [*odd, *named, *(f"https://{name}/latest/meta-data/" for name in INSIDE)]
