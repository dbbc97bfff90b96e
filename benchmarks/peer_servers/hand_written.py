"""A minimal server, written by hand: FastAPI, a queue and a loop that takes what is queued. `python hand_written.py PORT`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request

MAX_BATCH = 16
ANSWER = {"predictions": [{"label": f"class {index}", "index": index, "score": 0.1} for index in range(5)]}
Waiting = tuple[bytes, "asyncio.Future[dict[str, object]]"]
queue: asyncio.Queue[Waiting] = asyncio.Queue()


async def batches() -> None:
    while True:
        batch = [await queue.get()]
        while len(batch) < MAX_BATCH and not queue.empty():
            batch.append(queue.get_nowait())
        for _, answer in batch:
            answer.set_result(ANSWER)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(batches())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request) -> dict[str, object]:
    answer: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
    queue.put_nowait((await request.body(), answer))
    return await answer


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
