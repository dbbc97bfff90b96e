"""Repositories of the Hugging Face hub, by `hf://OWNER/REPO[@REVISION]` or `timm:NAME.TAG[@REVISION]`: download of the files that an
import reads into the hub's local cache.

`huggingface_hub` retries broken connections, keeps complete files, and reads HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE itself.
It trusts names and bodies, which are bounded here: an ETag becomes the name of a file, and an endless body fills the memory or the disk.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_session, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from models import hub_files
from models.hub_files import MAX_JSON_BYTES, WEIGHTS

HUB, TIMM = "hf://", "timm:"
TIMM_OWNER = "timm"
NAME_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9_]|-(?!-)|\.(?!\.)){0,95}(?<![.-])(?<!\.git)"
"""Names of owners and repositories: no `--` or `..`, and neither `-`, `.` nor `.git` at the end."""
REVISION_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)|/(?=[A-Za-z0-9_])){0,199}"
"""Names of revisions in git: no `..` or `//`, and no `/` at the end. The cache uses them as paths."""
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base error of huggingface_hub's HTTP library, which differs between its versions."""
HTTP_LIBRARY = import_module(HTTPError.__module__.partition(".")[0])
NAME_HEADERS = ("etag", "x-linked-etag", "x-repo-commit")
"""Headers that become names of files in the cache."""
COMPRESSION_FACTOR = 64
"""Factor by which the limit is lower for compressed bodies, which grow up to 1,000 times when they are read."""
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*@")
_max_bytes: ContextVar[int | None] = ContextVar("most", default=None)
CONFIG = "config.json"
OPTIONAL_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
"""Files that an import reads if a repository has them: preprocessing, model card, tokenizer."""
MAX_TAGS = 200
RETRY_ADVICE = "run the same command again: complete files are kept"
STATUS_ADVICE = {401: "check HF_TOKEN", 403: "check HF_TOKEN", 404: "check the address and HF_ENDPOINT"}
"""Status of an answer → what to do. For other statuses: wait."""
COMMIT = re.compile(r"[0-9a-f]{40,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class InvalidAddressError(ValueError):
    """An address that is not valid; the message shows a valid one."""


@dataclass(frozen=True)
class Address:
    """A repository and a revision of it."""

    owner: str
    name: str
    revision: str | None = None
    """A branch, tag or commit; None: the default branch."""

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def lacks_tag(self) -> bool:
        """Whether it names a network of timm without the tag of its weights."""
        return self.owner == TIMM_OWNER and "." not in self.name

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str) -> Address:
    """Parse an address. Raises InvalidAddressError."""
    if text.startswith(TIMM):
        parts = re.fullmatch(rf"{TIMM}({NAME_PATTERN})(?:@({REVISION_PATTERN}))?", text)
        if parts is None:
            raise InvalidAddressError(f"{text}: write timm:NAME.TAG, as in timm:vit_base_patch16_224.augreg_in21k_ft_in1k")
        return Address(TIMM_OWNER, parts[1], parts[2])
    parts = re.fullmatch(rf"{HUB}({NAME_PATTERN})/({NAME_PATTERN})(?:@({REVISION_PATTERN}))?", text)
    if parts is None:
        raise InvalidAddressError(f"{text}: write hf://OWNER/REPO or hf://OWNER/REPO@REVISION, as in hf://google/vit-base-patch16-224")
    return Address(parts[1], parts[2], parts[3])


class HubResponseError(Exception):
    """The answer is not one of a hub; the message says why."""


class _LimitedStream(HTTP_LIBRARY.SyncByteStream):  # type: ignore[misc, name-defined]
    """A body whose size is limited: reading more bytes raises HubResponseError."""

    def __init__(self, stream: Any, max_bytes: int) -> None:
        self._stream, self._max_bytes = stream, max_bytes

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for chunk in self._stream:
            read += len(chunk)
            if read > self._max_bytes:
                raise _too_large(self._max_bytes)
            yield chunk

    def close(self) -> None:
        self._stream.close()


@contextmanager
def limit_body(max_bytes: int | None) -> Iterator[None]:
    """Raise HubResponseError inside the block for larger bodies, and for names that lead out of the cache. max_bytes: None for no limit."""
    session = get_session()
    session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds; by default the library waits for ever
    hooks = session.event_hooks
    if _check not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _check]}
    token = _max_bytes.set(max_bytes)
    try:
        yield
    finally:
        _max_bytes.reset(token)


def without_password(text: str) -> str:
    """Return a text without the user names and passwords of its URLs."""
    return CREDENTIALS.sub("", text)


def _check(response: Any) -> None:
    for name in NAME_HEADERS:
        value = response.headers.get(name)
        if value is not None and _leads_out(value):
            raise HubResponseError(f"the header {name} does not come from a hub ({value[:80]!r}): check HF_ENDPOINT")
    max_bytes = _max_bytes.get()
    if max_bytes is None or response.request.method == "HEAD":
        return
    if response.headers.get("content-encoding", "identity") != "identity":
        max_bytes //= COMPRESSION_FACTOR
    if int(response.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)
    response.stream = _LimitedStream(response.stream, max_bytes)


def _leads_out(value: str) -> bool:
    """Return whether a name in the cache would be an absolute path or contain `..`. Other slashes are usual in ETags of JSON answers."""
    name = value.lstrip("W/").strip('"')
    return name.startswith("/") or ".." in re.split(r"[/\\]", name)


def _too_large(max_bytes: int) -> HubResponseError:
    return HubResponseError(f"it is larger than {max_bytes >> 20} MiB; only weights may be larger")


ENDPOINT = without_password(constants.ENDPOINT)
"""Address of the hub, for messages."""


class HubError(Exception):
    """The download failed; the message says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit."""

    folder: Path
    address: Address
    commit: str


def fetch(address: Address) -> Snapshot:
    """Download the files that an import reads into the cache. Raises HubError."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each failed attempt; the final error is raised here
    warnings.filterwarnings("ignore", module="huggingface_hub")
    if constants.HF_HUB_OFFLINE:
        return _find_cached(address)
    with _hub_errors_as_sentences(address), limit_body(MAX_JSON_BYTES):
        if address.lacks_tag:
            raise HubError(_missing_tag_message(address))
        info = HfApi().model_info(address.repository, revision=address.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit, names = str(info.sha), {file.rfilename for file in info.siblings or ()}
        if not COMMIT.fullmatch(commit):
            raise ValueError(f"{commit[:80]!r} is not a commit")
        weights = _select_weights(address, names)
        _fetch_file(address, address.revision, CONFIG)  # by the revision's name, so that the cache can resolve it offline
        for name in (CONFIG, *OPTIONAL_FILES):
            if name in names:
                _fetch_file(address, commit, name)
        file = _fetch_weights(address, commit, weights)
        for name in _read_shard_names(file) if file.suffix == ".json" else ():
            _fetch_weights(address, commit, name)
    return Snapshot(file.parent, address, commit)


def _find_cached(address: Address) -> Snapshot:
    """Find the files of an earlier download, for HF_HUB_OFFLINE."""
    if address.lacks_tag:
        raise HubError(f"timm:{address.name}: say which weights, as NAME.TAG; unset HF_HUB_OFFLINE to see which tags there are")
    try:
        folder = Path(hf_hub_download(address.repository, CONFIG, revision=address.revision, local_files_only=True)).parent
    except (EntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise HubError(f"{address}: is not in the cache, and HF_HUB_OFFLINE is set: unset it to fetch the repository") from error
    names = {path.name for path in folder.iterdir()}
    weights = folder / _select_weights(address, names)
    shards = _read_shard_names(weights) if weights.suffix == ".json" else []
    absent = [name for name in shards if name not in names]
    if absent:
        raise HubError(f"{address}: {absent[0]} is not in the cache, and HF_HUB_OFFLINE is set: unset it to fetch the rest")
    for name in (weights.name, *shards):
        _verify(address, folder / name)
    return Snapshot(folder, address, folder.name)


def _select_weights(address: Address, names: set[str]) -> str:
    weights = next((name for name in WEIGHTS if name in names), None)
    if CONFIG not in names or weights is None:
        lacking = CONFIG if CONFIG not in names else f"weights: none of {', '.join(WEIGHTS)}"
        others = ", ".join(sorted(names)[:8]) or "no files"
        raise HubError(f"{address}: has no {lacking}; it has {others}. What is read is a model of transformers or timm, with its {CONFIG}")
    return weights


def _fetch_weights(address: Address, commit: str, name: str) -> Path:
    """Download a file of weights, of any size, or the index of its shards."""
    with limit_body(MAX_JSON_BYTES if name.endswith(".json") else None):
        return _fetch_file(address, commit, name)


def _fetch_file(address: Address, revision: str | None, name: str) -> Path:
    try:
        file = Path(hf_hub_download(address.repository, name, revision=revision))
    except HubResponseError as error:
        raise HubError(f"{address}: {name}: {error}") from error
    except (HTTPError, OSError, RuntimeError) as error:  # hf_xet raises RuntimeError for every failure
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None else error
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            raise HubError(f"{address}: {name} is listed but does not exist") from error
        if isinstance(cause, HfHubHTTPError) or _is_folder_error(cause):
            raise cause from error
        raise HubError(f"{address}: {name} was not downloaded completely ({_reason(cause)}); {RETRY_ADVICE}") from error
    _verify(address, file)
    return file


def _verify(address: Address, file: Path) -> None:
    """Raise HubError for a file whose SHA-256 is not the one that the hub states, by which the cache names large files.

    The file is deleted, so that the next import downloads it again.
    """
    cached = file.resolve()
    if not SHA256.fullmatch(cached.name):
        return
    with cached.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != cached.name:
        cached.unlink()
        file.unlink()
        raise HubError(f"{address}: {file.name} has the SHA-256 {digest}, and the hub states {cached.name}; {RETRY_ADVICE}")


def _read_shard_names(index: Path) -> list[str]:
    try:
        return hub_files.shards(index)
    except ValueError as error:
        raise HubError(str(error)) from error


def _missing_tag_message(address: Address) -> str:
    """Return a message with the tags that a network of timm has."""
    models = HfApi().list_models(author=TIMM_OWNER, search=address.name, limit=MAX_TAGS)
    names = (model.id.removeprefix(f"{TIMM_OWNER}/") for model in models)
    tags = sorted(name.removeprefix(f"{address.name}.") for name in names if name.startswith(f"{address.name}."))
    if not tags:
        return f"timm:{address.name}: timm has no network of this name at {ENDPOINT}"
    return f"timm:{address.name}: say which weights, as in timm:{address.name}.{tags[0]}; its tags are {', '.join(tags)}"


@contextmanager
def _hub_errors_as_sentences(address: Address) -> Iterator[None]:
    """Turn errors of the hub inside the block into a HubError that says what to do."""
    url = f"{ENDPOINT}/{address.repository}"
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{address}: is gated: accept its terms at {url}, then set HF_TOKEN to a token that may read it") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{address}: has no revision {address.revision!r}; {url}/tree/main lists branches and tags") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{address}: is not at {ENDPOINT}, or is private: check its name, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise HubError(f"{address}: {ENDPOINT} answered {status}: {STATUS_ADVICE.get(status, 'try again later')}") from error
    except HubResponseError as error:
        raise HubError(f"{address}: {ENDPOINT} does not answer as a hub does: {error}") from error
    except UnicodeError as error:
        raise HubError(f"{address}: HF_TOKEN or HF_ENDPOINT has characters that no request can carry ({_reason(error)})") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:  # raised by the library, which trusts JSON
        raise HubError(f"{address}: {ENDPOINT} does not answer as a hub does ({_reason(error)}): check HF_ENDPOINT") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        if _is_folder_error(error):
            advice = "set HF_HOME to a folder with space in which you may write"
            raise HubError(f"{address}: the folder {constants.HF_HOME} cannot be used ({_reason(error)}): {advice}") from error
        raise HubError(
            f"{address}: {ENDPOINT} cannot be reached ({_reason(error)}): check the network and HF_ENDPOINT; "
            "HF_HUB_OFFLINE=1 imports what is in the cache"
        ) from error


def _is_folder_error(error: BaseException) -> bool:
    """Return whether the cache's folder caused the error, not the network."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT))


def _reason(error: BaseException) -> str:
    return without_password((str(error) or type(error).__name__).strip().splitlines()[0])
