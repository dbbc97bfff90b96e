"""Addresses and URLs that a gateway may connect to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from server.http.url_allowlist import AddressNotAllowed, embedded_ipv4, is_public, parse_remote_url
from tests.support.ssrf_urls import INSIDE


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"])
def test_public_addresses_are_public_however_wrapped(address: str) -> None:
    assert is_public(embedded_ipv4(ip_address(address)))


@pytest.mark.parametrize("address", [*INSIDE, "::", "0.0.0.0", "127.0.0.1", "192.88.99.1", "3fff::1", "2001:2::1"])
def test_and_no_others_are(address: str) -> None:
    assert not is_public(embedded_ipv4(ip_address(address.strip("[]"))))


def test_a_port_that_is_not_listed_is_another_host() -> None:
    assert parse_remote_url("https://images.example/a?b", {("images.example", 443)}).target == "/a?b"
    assert parse_remote_url("https://IMAGES.example:443", {("images.example", 443)}).authority == "images.example"
    for url in ("https://images.example:444/", "https://images.example.evil/", "https://images.example%2f/", "https://sub.images.example/"):
        with pytest.raises(AddressNotAllowed):
            parse_remote_url(url, {("images.example", 443)})


@pytest.mark.parametrize("url", ["https://user:secret@images.example/", "https://images.example:secret/", "https://user:secret@[images/"])
def test_a_password_in_a_url_is_repeated_nowhere(url: str) -> None:
    with pytest.raises(AddressNotAllowed) as refused:
        parse_remote_url(url, {("images.example", 443)})
    assert "secret" not in str(refused.value)
