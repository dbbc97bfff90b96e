"""Cache of vectors of texts: in this gateway, and behind it in Redis. A failed cache is a miss."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TypeVar

import msgspec

from server.concurrency import ClientBound
from server.gateway.inference.stages import AnsweredRequest, TaskPlan
from server.http.requests import owner_id
from server.queue.connect import CHUNK_BYTES
from server.queue.gateway.kept_values import VectorStore
from server.tasks.base import RecallsTexts
from server.tasks.embedding.vector_jobs import MAX_INLINE_TEXTS

OVERHEAD_BYTES = 400
"""Bytes that an entry takes besides its vector."""
RECORDED_BYTES = CHUNK_BYTES
"""Vectors that the record of an asynchronous job may hold: it is written as a whole, and read each time that the job is read."""
T = TypeVar("T")
PlanT = TypeVar("PlanT", bound=TaskPlan)


class TextCache:
    """Cache of one event loop."""

    def __init__(self, vectors: VectorStore, nbytes: int) -> None:
        """Keep at most so many bytes here. 0: nothing is kept, and nothing is recalled."""
        self._vectors = vectors
        self._lru = _VectorLru(nbytes)

    async def recall(self, plan: PlanT, client: str, max_bytes: float = math.inf) -> PlanT:
        """Return the plan with vectors of its texts, of at most so many bytes; other texts are read again."""
        if not isinstance(plan.task, RecallsTexts):
            return plan
        ids = await self._ids(plan)
        vectors = {text: vector for text, id_ in ids.items() if (vector := self._lru.get(id_)) is not None}
        missing = {id_: text for text, id_ in ids.items() if text not in vectors}
        if missing:
            found = await self._vectors.recall(list(missing))
            await self._keep(found, owner_id(client))
            vectors |= {missing[id_]: vector for id_, vector in found.items()}
        total = accumulate(map(len, vectors.values()))
        cached = {text: vector for (text, vector), nbytes in zip(vectors.items(), total, strict=True) if nbytes <= max_bytes}
        return msgspec.structs.replace(plan, plan=plan.task.with_cached(plan.plan, cached)) if cached else plan

    async def store(self, answered: AnsweredRequest) -> None:
        """Keep the vectors of texts that were read for this answer."""
        if not isinstance(answered.task, RecallsTexts) or not (ids := await self._ids(answered)):
            return
        vectors = await _run_in_thread_if_many(partial(answered.task.vectors_to_cache, answered.outputs, answered.plan), len(ids))
        if vectors:
            new, owner = {ids[text]: vector for text, vector in vectors.items()}, owner_id(answered.client)
            await self._keep(new, owner)
            self._vectors.keep_soon(owner, new)

    async def _keep(self, vectors: Mapping[str, bytes], owner: str) -> None:
        for count, (id_, vector) in enumerate(vectors.items(), start=1):
            self._lru.keep(id_, vector, owner)
            if count % MAX_INLINE_TEXTS == 0:
                await asyncio.sleep(0)  # thousands would block the event loop

    async def _ids(self, plan: TaskPlan) -> dict[str, str]:
        """Return the SHA-256 of the bundle's content and the text, by text: two contents never share a vector."""
        texts = plan.task.texts(plan.plan) if self._lru.max_bytes and isinstance(plan.task, RecallsTexts) else ()
        return await _run_in_thread_if_many(partial(_ids, plan.spec.digest(), texts), len(texts))


async def _run_in_thread_if_many(work: Callable[[], T], texts: int) -> T:
    """Return the result of work on so many texts."""
    return work() if texts <= MAX_INLINE_TEXTS else await asyncio.to_thread(work)


def _ids(digest: str, texts: Sequence[str]) -> dict[str, str]:
    return {text: hashlib.sha256(f"{digest}:{text}".encode()).hexdigest() for text in texts}


class _VectorLru:
    """Vectors that were used longest ago leave first. One owner has a quarter at most: beyond that the owner's own leave, so that no owner
    drives out what others use."""

    def __init__(self, max_bytes: int) -> None:
        self._bound = ClientBound(max_bytes, max_bytes / 4)
        self._vectors: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        """Vector and owner by id, the one used last at the end."""
        self._of: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)
        """Ids by owner, in the same order."""

    @property
    def max_bytes(self) -> float:
        return self._bound.total

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
        if id_ in self._vectors or nbytes > self._bound.each:
            return
        while bound := self._bound.exceeded_bound(owner, nbytes):
            self._forget(next(iter(self._of[owner] if bound == "each" else self._vectors)))
        self._bound.take(owner, nbytes)
        self._vectors[id_] = vector, owner
        self._of[owner][id_] = None

    def _forget(self, id_: str) -> None:
        vector, owner = self._vectors.pop(id_)
        self._bound.give(owner, len(vector) + OVERHEAD_BYTES)
        del self._of[owner][id_]
        if not self._of[owner]:
            del self._of[owner]
