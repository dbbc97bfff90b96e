"""Parts that requests name by URL: what is fetched, and what never is."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from server.gateway.inference.url_parts import PartFetcher
from server.http.outbound import OutboundClient
from server.http.problems import Problem, ProblemKind
from server.http.url_allowlist import Ip
from tests.gateway.conftest import Shared
from tests.support.fake_servers import Host, HostAnswer, RecordedRequest, host, trust
from tests.support.fake_worker import picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.raw_http import Raw, post
from tests.support.ssrf_urls import INSIDE, LOOPBACK, UNRESOLVABLE, hostile
from tests.support.waiting import WAIT_S, eventually, eventually_async

LIMIT = 200_000
HELD = threading.Event()
"""Event that lets the answer at `/held` come."""
WAITED = threading.Event()
"""Event that lets the answers at `/waits` come."""


def answer(request: RecordedRequest) -> HostAnswer:
    path, _, query = request.path.partition("?")
    match path.split("/")[1:]:
        case ["red", step]:
            return HostAnswer(body=picture(int(step)))
        case ["moved", "0"]:
            return HostAnswer(302, headers={"Location": "../red/3"})
        case ["moved", times]:
            return HostAnswer(307, headers={"Location": f"/moved/{int(times) - 1}"})
        case ["to"]:
            return HostAnswer(301, headers={"Location": query})
        case ["large"]:
            return HostAnswer(body=bytes(LIMIT + 1))
        case ["cut"]:
            return HostAnswer(body=picture(3), cut=20)
        case ["zipped"]:
            return HostAnswer(body=picture(3), headers={"Content-Encoding": "gzip"})
        case ["empty"]:
            return HostAnswer()
        case ["held"]:
            HELD.wait(WAIT_S)
        case ["waits"]:
            WAITED.wait(WAIT_S)
        case ["bits"]:
            return HostAnswer(body=b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n", headers={"Transfer-Encoding": "chunked"})
        case ["soon"]:
            return HostAnswer(103, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5000 + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        case ["text"]:
            return HostAnswer(body=b"no image")
    return HostAnswer(404)


@pytest.fixture(scope="module")
def internet() -> Iterator[Host]:
    with host(answer, "localhost") as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Processes that are started trust the authority of the tests. There is a proxy in their environment, which does not count."""
    with pytest.MonkeyPatch.context() as environment:
        file = trust(tmp_path_factory.mktemp("authority"))
        environment.setenv("SSL_CERT_FILE", str(file))
        environment.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        yield file


@pytest.fixture(scope="module")
def fetching(shared: Shared, internet: Host, certificates: Path) -> Iterator[Gateway]:
    """A gateway that may reach this machine under one name."""
    allowed = {"fetch_hosts": [f"localhost:{internet.port}", "nowhere.invalid"], "fetch_networks": ["127.0.0.0/8", "::1/128"]}
    with gateway_process(shared.redis_url, max_body_bytes=LIMIT, max_images=8, **allowed) as running:
        yield running


@pytest.fixture(scope="module")
def careless(shared: Shared, internet: Host, certificates: Path) -> Iterator[Gateway]:
    """A gateway whose operator has listed names that lead inside, and no network."""
    hosts = [*(f"{name}:{internet.port}" for name in LOOPBACK), *INSIDE, *(f"{name}:{internet.port}" for name in INSIDE), "nowhere.invalid"]
    with gateway_process(shared.redis_url, fetch_hosts=hosts) as running:
        yield running


def label(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    found: str = response.json()["results"][0]["predictions"][0]["label"]
    return found


def problem(response: httpx2.Response) -> tuple[int, str, str | None]:
    """Return status, kind and field."""
    document = response.json()
    return response.status_code, document["type"].removeprefix("urn:opsin:"), document.get("field")


def test_an_image_is_fetched_over_tls(fetching: Gateway, internet: Host) -> None:
    url = internet.url("/red/4?size=small")
    assert label(fetching.http.post("/v1/classify", json={"image_url": url})) == "red 4"
    assert label(fetching.http.post("/v1/classify", files={"image_url": (None, url)})) == "red 4"
    request = internet.requests[-1]
    assert (request.path, request.headers["host"]) == ("/red/4?size=small", f"localhost:{internet.port}")
    assert not {"authorization", "cookie", "x-forwarded-for"} & request.headers.keys()


def test_several_come_in_their_order(fetching: Gateway, internet: Host) -> None:
    urls = [internet.url(f"/red/{step}") for step in (7, 0, 5)]
    answers = [
        fetching.http.post("/v1/classify", json={"image_urls": urls}),
        fetching.http.post("/v1/classify", files=[("image_url", (None, url)) for url in urls]),
    ]
    for answer in answers:
        assert [one["predictions"][0]["label"] for one in answer.json()["results"]] == ["red 7", "red 0", "red 5"]


def test_job_has_image_before_acceptance_and_repeat_is_the_same(fetching: Gateway, internet: Host) -> None:
    headers = {"Prefer": "respond-async", "Idempotency-Key": "fetched once"}
    first = fetching.http.post("/v1/classify", json={"image_url": internet.url("/red/2")}, headers=headers)
    assert (first.status_code, internet.requests[-1].path) == (202, "/red/2")
    again = fetching.http.post("/v1/classify", json={"image_url": internet.url("/red/2")}, headers=headers)
    other = fetching.http.post("/v1/classify", json={"image_url": internet.url("/red/1")}, headers=headers)
    assert again.json()["id"] == first.json()["id"]
    assert problem(other) == (422, "invalid-option", "Idempotency-Key")
    refused = fetching.http.post("/v1/classify", json={"image_url": internet.url("/gone")}, headers={"Prefer": "respond-async"})
    assert problem(refused) == (422, "fetch-failed", "image_url")


def test_three_redirects_are_followed_and_no_fourth(fetching: Gateway, internet: Host) -> None:
    assert label(fetching.http.post("/v1/classify", json={"image_url": internet.url("/moved/2")})) == "red 3"
    far = fetching.http.post("/v1/classify", json={"image_url": internet.url("/moved/3")})
    assert (problem(far), "3 redirects" in far.text) == ((422, "fetch-failed", "image_url"), True)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/gone", (422, "fetch-failed", "image_url"), "answered 404"),
        ("/cut", (422, "fetch-failed", "image_url"), "broke off"),
        ("/zipped", (422, "fetch-failed", "image_url"), "Content-Encoding"),
        ("/empty", (422, "fetch-failed", "image_url"), "without a byte"),
        ("/bits", (422, "fetch-failed", "image_url"), "chunks of one"),
        ("/soon", (422, "fetch-failed", "image_url"), "nothing was fetched"),
        ("/large", (413, "too-large", "image_url"), f"{LIMIT} bytes"),
        ("/text", (415, "not-an-image", "image"), ""),
    ],
)
def test_what_comes_back_may_be_of_no_use(fetching: Gateway, internet: Host, path: str, kind: Any, words: str) -> None:
    refused = fetching.http.post("/v1/classify", json={"image_url": internet.url(path)})
    assert problem(refused) == kind
    assert words in refused.json()["detail"]


def test_one_of_several_that_fails_is_named(fetching: Gateway, internet: Host) -> None:
    urls = [internet.url("/red/1"), internet.url("/gone")]
    assert problem(fetching.http.post("/v1/classify", json={"image_urls": urls})) == (422, "fetch-failed", "image_url[1]")


def test_all_of_a_request_together_may_be_as_long_as_a_body(internet: Host, certificates: Path) -> None:
    async def fetch() -> None:
        outbound = OutboundClient([f"localhost:{internet.port}"], ["127.0.0.0/8", "::1/128"])
        urls = [internet.url(f"/red/{step}") for step in (1, 2)]
        try:
            await PartFetcher(outbound, len(picture(1)) + 10).fetch({"image": urls}, UnboundedReservation(), "client")
        finally:
            await outbound.close()

    with pytest.raises(Problem) as refused:
        asyncio.run(fetch())
    assert refused.value.kind is ProblemKind.TOO_LARGE


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"image_url": "https://localhost/a", "image": base64.b64encode(picture(1)).decode()}, "image_url"),
        ({"image_url": "https://localhost/a", "image_urls": []}, "image_urls"),
        ({"image_url": 5}, "image_url"),
        ({"image_url": "https://localhost/" + "a" * 4096}, "image_url"),
        ({"depth_url": "https://localhost/a"}, "depth_url"),
        ({"mask_url": "https://localhost/a"}, "mask_url"),
    ],
)
def test_a_wrong_request_names_the_field_and_fetches_nothing(fetching: Gateway, internet: Host, body: Any, field: str) -> None:
    before = internet.connections
    assert problem(fetching.http.post("/v1/classify", json=body)) == (422, "invalid-option", field)
    assert internet.connections == before


def test_a_wrong_option_is_refused_before_anything_is_fetched(fetching: Gateway, internet: Host) -> None:
    before = internet.connections
    refused = fetching.http.post("/v1/classify", json={"image_url": internet.url("/red/1"), "top_k": 0})
    assert (problem(refused), internet.connections) == ((422, "invalid-option", "top_k"), before)


def test_what_no_bundle_does_is_refused_before_any_fetch(fetching: Gateway, internet: Host) -> None:
    before, url = internet.connections, internet.url("/red/1")
    for body, kind in (
        ({"image_url": url, "model": "nobody"}, (404, "unknown-model", "model")),
        ({"video_url": url, "model": "reds"}, (422, "invalid-option", "video")),
    ):
        assert problem(fetching.http.post("/v1/classify", json=body)) == kind
    assert internet.connections == before


async def test_one_client_holds_two_turns_and_others_fetch_meanwhile(internet: Host, certificates: Path) -> None:
    outbound = OutboundClient([f"localhost:{internet.port}"], ["127.0.0.0/8", "::1/128"])
    fetcher = PartFetcher(outbound, LIMIT)
    slow = asyncio.create_task(fetcher.fetch({"image": [internet.url("/waits")] * 16}, UnboundedReservation(), "greedy"))
    try:
        await eventually_async(lambda: sum(request.path == "/waits" for request in internet.requests) == 2)
        await fetcher.fetch({"image": [internet.url("/red/1")]}, UnboundedReservation(), "modest")
        assert sum(request.path == "/waits" for request in internet.requests) == 2
    finally:
        WAITED.set()
        await asyncio.gather(slow, return_exceptions=True)
        await outbound.close()


def test_a_client_that_leaves_is_not_fetched_for_any_more(fetching: Gateway, internet: Host) -> None:
    body = json.dumps({"image_url": internet.url("/held")}).encode()
    with Raw(fetching) as leaving:
        leaving.send(post("/v1/classify", "Content-Type: application/json", f"Content-Length: {len(body)}", body=body))
        eventually(lambda: any(request.path == "/held" for request in internet.requests), "the host has the request")
    eventually(lambda: fetching.metric("opsin_requests_total", outcome="cancelled") == 1, "the request has ended")
    HELD.set()


def test_nothing_is_fetched_unless_hosts_are_listed(gateway: Gateway, internet: Host) -> None:
    refused = gateway.http.post("/v1/classify", json={"image_url": internet.url("/red/1")})
    assert problem(refused) == (422, "invalid-option", "image_url")
    assert "OPSIN_FETCH_HOSTS" in refused.json()["detail"]


def test_openais_route_takes_no_url_all_the_same(fetching: Gateway, internet: Host) -> None:
    before = internet.connections
    body = {"model": "m", "modality": "image", "input": internet.url("/red/1")}
    assert fetching.http.post("/v1/embeddings", json=body).status_code == 400
    assert internet.connections == before


def test_hostile_urls_reach_nothing_and_get_the_same_error(careless: Gateway, internet: Host) -> None:
    urls = hostile(internet.port)
    assert len(urls) >= 60
    before = internet.connections
    answers = {}
    for url in urls:
        response = careless.http.post("/v1/classify", json={"image_url": url})
        answers[url] = (problem(response), response.json()["detail"])
    assert {url: answer for url, answer in answers.items() if answer != answers[UNRESOLVABLE]} == {}
    assert answers[UNRESOLVABLE][0] == (422, "fetch-failed", "image_url")
    assert internet.connections == before


def test_a_redirect_is_checked_like_the_url_before_it(fetching: Gateway, internet: Host) -> None:
    assert label(fetching.http.post("/v1/classify", json={"image_url": internet.url("/to?/red/6")})) == "red 6"
    targets = [url for url in hostile(internet.port) if url.isprintable() and url.isascii() and not url.startswith(("/red", " "))]
    allowed = {internet.url("/red/1"), f"//localhost:{internet.port}/red/1", "https:///red/1", ""}
    """Targets at which a gateway may fetch."""
    for target in targets:
        if target not in allowed:
            response = fetching.http.post("/v1/classify", json={"image_url": internet.url(f"/to?{target}")})
            assert problem(response) == (422, "fetch-failed", "image_url"), target


def test_a_certificate_of_another_name_or_authority_is_none(shared: Shared, certificates: Path) -> None:
    with (
        host(answer, "elsewhere.example") as named,
        host(answer, "localhost", authority=trustme.CA()) as unknown,
        gateway_process(
            shared.redis_url,
            fetch_hosts=[f"localhost:{named.port}", f"localhost:{unknown.port}"],
            fetch_networks=["127.0.0.0/8", "::1/128"],
        ) as running,
    ):
        for elsewhere in (named, unknown):
            refused = running.http.post("/v1/classify", json={"image_url": elsewhere.url("/red/1")})
            assert problem(refused) == (422, "fetch-failed", "image_url")
            assert (elsewhere.connections > 0, elsewhere.requests) == (True, [])


@dataclass
class UnboundedReservation:
    """A reservation that is never refused."""

    items: int = 0
    nbytes: int = 0

    async def resize(self, items: int, nbytes: int) -> None:
        self.items, self.nbytes = items, nbytes


class Names:
    """A server of names whose answers change: each look-up gets the next one."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.lookups = 0

    async def __call__(self, _host: str, _port: int) -> Sequence[Ip]:
        self.lookups += 1
        return [ip_address(address) for address in self.answers[min(self.lookups, len(self.answers)) - 1]]


async def fetch_part(internet: Host, names: Names, path: str, networks: Sequence[str] = ("127.0.0.1/32",)) -> bytes:
    """Fetch an image as a gateway does that may connect to 127.0.0.1 alone, unless networks are given."""
    outbound = OutboundClient([f"localhost:{internet.port}"], networks, names, connect=0.2)
    try:
        contents = await PartFetcher(outbound, LIMIT).fetch({"image": [internet.url(path)]}, UnboundedReservation(), "client")
    finally:
        await outbound.close()
    return contents["image"][0]


async def test_a_name_is_resolved_once_and_what_was_checked_is_dialled(internet: Host, certificates: Path) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    assert await fetch_part(internet, names, "/red/1") == picture(1)
    assert names.lookups == 1


async def test_an_address_that_never_answers_leaves_time_for_the_next(internet: Host, certificates: Path) -> None:
    with socket.create_server(("127.0.0.2", internet.port), backlog=0) as deaf, ExitStack() as closing:
        for _ in range(4):  # more than it keeps: the kernel leaves further ones without an answer
            knocking = closing.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(deaf.getsockname())
        assert await fetch_part(internet, Names(["127.0.0.2", "127.0.0.1"]), "/red/1", ["127.0.0.0/8"]) == picture(1)


@pytest.mark.parametrize("other", ["10.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254"])
async def test_name_with_one_private_address_is_not_dialled_at_others(internet: Host, certificates: Path, other: str) -> None:
    before = internet.connections
    with pytest.raises(Problem):
        await fetch_part(internet, Names(["127.0.0.1", other]), "/red/1")
    assert internet.connections == before


async def test_redirect_name_that_turns_private_is_not_dialled(internet: Host, certificates: Path) -> None:
    before = internet.connections
    with pytest.raises(Problem) as refused:
        await fetch_part(internet, Names(["127.0.0.1"], ["127.0.0.3"]), "/moved/0")
    assert refused.value.kind is ProblemKind.FETCH_FAILED
    assert internet.connections == before + 1
