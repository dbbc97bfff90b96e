"""The files of a repository come into the hub's cache on this computer, those that an import reads and no others.

`huggingface_hub` tries again where a connection breaks, keeps what came whole, and reads HF_TOKEN, HF_ENDPOINT, HF_HOME and
HF_HUB_OFFLINE by itself.
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
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
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
from opsin.hub.address import TIMM_OWNER, Address
from opsin.hub.bounds import HTTPError, Refused, bounded, without_password

CONFIG = "config.json"
BESIDE = (
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
"""Files that are read where a repository has them: preparation of images, model card, tokenizer."""
MOST_TAGS = 200
AGAIN = "run the same command again: files that came whole are kept"
ADVICE = {401: "check HF_TOKEN", 403: "check HF_TOKEN", 404: "check the address and HF_ENDPOINT"}
"""Status of an answer → what to do; of the others: wait."""
COMMIT = re.compile(r"[0-9a-f]{40,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
ENDPOINT = without_password(constants.ENDPOINT)
"""Address of the hub, for messages."""


class HubError(Exception):
    """Files did not come; the message is a sentence that says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit."""

    folder: Path
    address: Address
    commit: str


def fetch(address: Address) -> Snapshot:
    """Fetch what an import reads, into the cache. Raises HubError."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each try that failed; what came of it is told here
    warnings.filterwarnings("ignore", module="huggingface_hub")  # so does what it warns of
    if constants.HF_HUB_OFFLINE:
        return _cached(address)
    with _told(address), bounded(MAX_JSON_BYTES):
        if address.lacks_tag:
            raise HubError(_tags(address))
        info = HfApi().model_info(address.repository, revision=address.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit, names = str(info.sha), {file.rfilename for file in info.siblings or ()}
        if not COMMIT.fullmatch(commit):
            raise ValueError(f"{commit[:80]!r} is no commit")
        weights = _weights(address, names)
        _file(address, address.revision, CONFIG)  # by its name, so that the cache knows the revision when it is offline
        for name in (CONFIG, *BESIDE):
            if name in names:
                _file(address, commit, name)
        file = _weights_file(address, commit, weights)
        for name in _shards(file) if file.suffix == ".json" else ():
            _weights_file(address, commit, name)
    return Snapshot(file.parent, address, commit)


def _cached(address: Address) -> Snapshot:
    """Find what an earlier fetch has left, where HF_HUB_OFFLINE forbids another one."""
    if address.lacks_tag:
        raise HubError(f"timm:{address.name}: say which weights, as NAME.TAG; unset HF_HUB_OFFLINE to see which tags there are")
    try:
        folder = Path(hf_hub_download(address.repository, CONFIG, revision=address.revision, local_files_only=True)).parent
    except (EntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise HubError(f"{address}: is not in the cache, and HF_HUB_OFFLINE is set: unset it to fetch the repository") from error
    names = {path.name for path in folder.iterdir()}
    weights = folder / _weights(address, names)
    shards = _shards(weights) if weights.suffix == ".json" else []
    absent = [name for name in shards if name not in names]
    if absent:
        raise HubError(f"{address}: {absent[0]} is not in the cache, and HF_HUB_OFFLINE is set: unset it to fetch the rest")
    for name in (weights.name, *shards):
        _check(address, folder / name)
    return Snapshot(folder, address, folder.name)


def _weights(address: Address, names: set[str]) -> str:
    found = next((name for name in WEIGHTS if name in names), None)
    if CONFIG not in names or found is None:
        lacking = CONFIG if CONFIG not in names else f"weights: none of {', '.join(WEIGHTS)}"
        others = ", ".join(sorted(names)[:8]) or "no files"
        raise HubError(f"{address}: has no {lacking}; it has {others}. What is read is a model of transformers or timm, with its {CONFIG}")
    return found


def _weights_file(address: Address, commit: str, name: str) -> Path:
    """`_file` of any size, or of an index."""
    with bounded(MAX_JSON_BYTES if name.endswith(".json") else None):
        return _file(address, commit, name)


def _file(address: Address, revision: str | None, name: str) -> Path:
    try:
        file = Path(hf_hub_download(address.repository, name, revision=revision))
    except Refused as error:
        raise HubError(f"{address}: {name}: {error}") from error
    except (HTTPError, OSError, RuntimeError) as error:  # hf_xet raises RuntimeError, whatever happened
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None else error
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            raise HubError(f"{address}: {name} is not there, though it is listed") from error
        if isinstance(cause, HfHubHTTPError) or _of_folder(cause):
            raise cause from error
        raise HubError(f"{address}: {name} did not come whole ({_reason(cause)}); {AGAIN}") from error
    _check(address, file)
    return file


def _check(address: Address, file: Path) -> None:
    """Raise HubError for a file that is not the one whose SHA-256 the hub told, by which the cache names large files; it is fetched anew
    the next time."""
    kept = file.resolve()
    if not SHA256.fullmatch(kept.name):
        return
    with kept.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != kept.name:
        kept.unlink()
        file.unlink()
        raise HubError(f"{address}: {file.name} has the SHA-256 {found}, and the hub states {kept.name}; {AGAIN}")


def _shards(index: Path) -> list[str]:
    try:
        return hub_files.shards(index)
    except ValueError as error:
        raise HubError(str(error)) from error


def _tags(address: Address) -> str:
    """Says which tags a network of timm has."""
    models = HfApi().list_models(author=TIMM_OWNER, search=address.name, limit=MOST_TAGS)
    names = (model.id.removeprefix(f"{TIMM_OWNER}/") for model in models)
    tags = sorted(name.removeprefix(f"{address.name}.") for name in names if name.startswith(f"{address.name}."))
    if not tags:
        return f"timm:{address.name}: timm has no network of this name at {ENDPOINT}"
    return f"timm:{address.name}: say which weights, as in timm:{address.name}.{tags[0]}; its tags are {', '.join(tags)}"


@contextmanager
def _told(address: Address) -> Iterator[None]:
    """Errors of the hub become sentences that say what to do."""
    place = f"{ENDPOINT}/{address.repository}"
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{address}: is gated: accept its terms at {place}, then set HF_TOKEN to a token that may read it") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{address}: has no revision {address.revision!r}; {place}/tree/main lists branches and tags") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{address}: is not at {ENDPOINT}, or is private: check its name, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise HubError(f"{address}: {ENDPOINT} answered {status}: {ADVICE.get(status, 'try again later')}") from error
    except Refused as error:
        raise HubError(f"{address}: {ENDPOINT} gives no answer of a hub: {error}") from error
    except UnicodeError as error:
        raise HubError(f"{address}: HF_TOKEN or HF_ENDPOINT has characters that no request can carry ({_reason(error)})") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:  # of the library, which trusts JSON
        raise HubError(f"{address}: {ENDPOINT} does not answer as a hub does ({_reason(error)}): check HF_ENDPOINT") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        if _of_folder(error):
            wanted = "set HF_HOME to a folder with space in which you may write"
            raise HubError(f"{address}: the folder {constants.HF_HOME} cannot be used ({_reason(error)}): {wanted}") from error
        raise HubError(
            f"{address}: {ENDPOINT} cannot be reached ({_reason(error)}): check the network and HF_ENDPOINT; "
            "HF_HUB_OFFLINE=1 imports what is in the cache"
        ) from error


def _of_folder(error: BaseException) -> bool:
    """Whether the cache is the reason, and not the network."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT))


def _reason(error: BaseException) -> str:
    return without_password((str(error) or type(error).__name__).strip().splitlines()[0])
