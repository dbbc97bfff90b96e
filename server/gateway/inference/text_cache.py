"""Vectors of texts that were read before: in this gateway, and behind it in Redis. A failed cache is a miss."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TypeVar

from server.concurrency.client_bound import ClientBound
from server.gateway.inference.runner import Asked
from server.http.client_identity import owner_of
from server.queue.gateway.vector_store import VectorStore
from server.queue.resp import CHUNK_BYTES
from server.tasks.base import Outputs
from server.tasks.capabilities import RecallsTexts
from server.tasks.embedding.text_jobs import MAX_INLINE_TEXTS

OVERHEAD_BYTES = 400
"""Bytes that an entry takes besides its vector."""
RECORDED_BYTES = CHUNK_BYTES
"""Vectors that the record of an asynchronous job may hold: it is written as a whole, and read whenever somebody looks at the job."""
T = TypeVar("T")


class TextCache:
    """For one event loop."""

    def __init__(self, vectors: VectorStore, nbytes: int) -> None:
        """nbytes: bound for what is kept here; 0: nothing is, and nothing is recalled."""
        self._vectors = vectors
        self._kept = _VectorLru(nbytes)

    async def recall(self, asked: Asked, client: str, most: float = math.inf) -> Asked:
        """Return the request with what is known of its texts. most: bytes of their vectors; beyond it texts are read again."""
        if not isinstance(asked.task, RecallsTexts):
            return asked
        ids = await self._ids(asked)
        known = {text: vector for text, id_ in ids.items() if (vector := self._kept.get(id_)) is not None}
        missing = {id_: text for text, id_ in ids.items() if text not in known}
        if missing:
            there = await self._vectors.recall(list(missing))
            await self._keep(there, owner_of(client))
            known |= {missing[id_]: vector for id_, vector in there.items()}
        total = accumulate(map(len, known.values()))
        held = {text: vector for (text, vector), nbytes in zip(known.items(), total, strict=True) if nbytes <= most}
        return replace(asked, plan=asked.task.with_cached(asked.plan, held)) if held else asked

    async def learn(self, asked: Asked, outputs: Sequence[Outputs], client: str) -> None:
        """Keep the vectors of texts that were read for this answer."""
        if not isinstance(asked.task, RecallsTexts):
            return
        ids = await self._ids(asked)
        if not ids:
            return
        learned = await _aside(partial(asked.task.vectors_to_cache, outputs, asked.plan), len(ids))
        if learned:
            new = {ids[text]: vector for text, vector in learned.items()}
            await self._keep(new, owner_of(client))
            self._vectors.keep_soon(owner_of(client), new)

    async def _keep(self, vectors: Mapping[str, bytes], owner: str) -> None:
        for count, (id_, vector) in enumerate(vectors.items(), start=1):
            self._kept.keep(id_, vector, owner)
            if count % MAX_INLINE_TEXTS == 0:
                await asyncio.sleep(0)  # thousands would hold up everybody else

    async def _ids(self, asked: Asked) -> dict[str, str]:
        """By text: SHA-256 of the bundle's content and the text, so that two contents never share a vector."""
        texts = asked.task.texts(asked.plan) if self._kept.max_bytes and isinstance(asked.task, RecallsTexts) else ()
        return await _aside(partial(_ids, asked.spec.digest(), texts), len(texts))


async def _aside(work: Callable[[], T], texts: int) -> T:
    """The result of work on so many texts: in a thread where they are many."""
    return work() if texts <= MAX_INLINE_TEXTS else await asyncio.to_thread(work)


def _ids(digest: str, texts: Sequence[str]) -> dict[str, str]:
    return {text: hashlib.sha256(f"{digest}:{text}".encode()).hexdigest() for text in texts}


class _VectorLru:
    """Vectors that were used longest ago leave first. One owner has a quarter at most: beyond that the owner's own leave, so that no owner
    drives out what others use."""

    def __init__(self, max_bytes: int) -> None:
        self._held = ClientBound(max_bytes, max_bytes / 4)
        self._vectors: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        """Vector and owner by id, the one used last at the end."""
        self._of: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)
        """Ids by owner, in the same order."""

    @property
    def max_bytes(self) -> float:
        return self._held.total

    def get(self, id_: str) -> bytes | None:
        """Return a vector, which counts as used from now on."""
        if id_ not in self._vectors:
            return None
        vector, owner = self._vectors[id_]
        self._vectors.move_to_end(id_)
        self._of[owner].move_to_end(id_)
        return vector

    def keep(self, id_: str, vector: bytes, owner: str) -> None:
        nbytes = len(vector) + OVERHEAD_BYTES
        if id_ in self._vectors or nbytes > self._held.each:
            return
        while bound := self._held.over(owner, nbytes):
            self._forget(next(iter(self._of[owner] if bound == "each" else self._vectors)))
        self._held.take(owner, nbytes)
        self._vectors[id_] = vector, owner
        self._of[owner][id_] = None

    def _forget(self, id_: str) -> None:
        vector, owner = self._vectors.pop(id_)
        self._held.give(owner, len(vector) + OVERHEAD_BYTES)
        del self._of[owner][id_]
        if not self._of[owner]:
            del self._of[owner]
