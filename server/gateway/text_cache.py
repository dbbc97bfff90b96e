"""Vectors of texts that were read before: in this gateway, and behind it in Redis. A failed cache is a miss."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from server.gateway.inference import Asked
from server.http.clients import owner_of
from server.queue.vectors import Vectors
from server.tasks.base import Outputs
from server.tasks.texts import FEW

OVERHEAD_BYTES = 500
"""Bytes that an entry takes besides its vector."""


class TextCache:
    """For one event loop."""

    def __init__(self, vectors: Vectors, nbytes: int) -> None:
        """nbytes: bound for what is kept here; 0: nothing is, and nothing is recalled."""
        self._vectors = vectors
        self._kept = _Shared(nbytes)

    async def recall(self, asked: Asked, client: str) -> Asked:
        """Return the request with what is known of its texts."""
        ids = await self._ids(asked)
        known = {text: kept for text, id_ in ids.items() if (kept := self._kept.get(id_)) is not None}
        missing = {id_: text for text, id_ in ids.items() if text not in known}
        if missing:
            there = await self._vectors.recall(list(missing))
            self._keep(there, owner_of(client))
            known |= {missing[id_]: vector for id_, vector in there.items()}
        return replace(asked, plan=asked.task.recalled(asked.plan, known)) if known else asked

    async def learn(self, asked: Asked, outputs: Sequence[Outputs], client: str) -> None:
        """Keep the vectors of texts that were read for this answer."""
        ids = await self._ids(asked)
        new = {ids[text]: vector for text, vector in asked.task.learned(outputs, asked.plan).items()} if ids else {}
        if new:
            self._keep(new, owner_of(client))
            self._vectors.keep_soon(owner_of(client), new)

    def _keep(self, vectors: dict[str, bytes], owner: str) -> None:
        for id_, vector in vectors.items():
            self._kept.keep(id_, vector, owner)

    async def _ids(self, asked: Asked) -> dict[str, str]:
        """By text: content of the bundle and text, so that two contents never share a vector."""
        texts = asked.task.texts(asked.plan) if self._kept.nbytes else ()
        work = partial(_ids, asked.spec.digest(), texts)
        return work() if len(texts) <= FEW else await asyncio.to_thread(work)


def _ids(digest: str, texts: Sequence[str]) -> dict[str, str]:
    return {text: f"{digest}:{hashlib.sha256(text.encode()).hexdigest()}" for text in texts}


class _Shared:
    """Those that were used longest ago leave first. One owner has a quarter at most, beyond which its own leave: nobody drives out what
    others use."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._kept: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        """Vector and owner by id, the latest used last."""
        self._of: dict[str, OrderedDict[str, None]] = {}
        """Ids by owner, in the same order. None is empty."""
        self._held: Counter[str] = Counter()
        """Bytes by owner."""
        self._all = 0

    def get(self, id_: str) -> bytes | None:
        kept = self._kept.get(id_)
        if kept is None:
            return None
        self._kept.move_to_end(id_)
        self._of[kept[1]].move_to_end(id_)
        return kept[0]

    def keep(self, id_: str, vector: bytes, owner: str) -> None:
        size = len(vector) + OVERHEAD_BYTES
        if id_ in self._kept or size > self.nbytes / 4:
            return
        while self._held[owner] + size > self.nbytes / 4:
            self._forget(next(iter(self._of[owner])))
        while self._all + size > self.nbytes:
            self._forget(next(iter(self._kept)))
        self._kept[id_] = vector, owner
        self._of.setdefault(owner, OrderedDict())[id_] = None
        self._held[owner] += size
        self._all += size

    def _forget(self, id_: str) -> None:
        vector, owner = self._kept.pop(id_)
        size = len(vector) + OVERHEAD_BYTES
        del self._of[owner][id_]
        self._held[owner] -= size
        self._all -= size
        if not self._of[owner]:
            del self._of[owner], self._held[owner]
