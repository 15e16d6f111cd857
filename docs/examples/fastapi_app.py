"""A classifier over HTTP:  MODEL=runs/reviews uvicorn fastapi_app:app

Requests that come while a batch is computed form the next batch.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

import minipeft

LARGEST_BATCH = 256  # texts


class Request(BaseModel):
    texts: list[str]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.requests = asyncio.Queue()
    worker = asyncio.create_task(predict_batches(minipeft.load_run(os.environ["MODEL"]), app.state.requests))
    yield
    worker.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request) -> list[dict[str, Any]]:
    answer = asyncio.get_running_loop().create_future()
    await app.state.requests.put((request.texts, answer))
    return await answer


async def predict_batches(run: Any, requests: asyncio.Queue[Any]) -> None:
    while True:
        batch = [await requests.get()]
        while not requests.empty() and sum(len(texts) for texts, _ in batch) < LARGEST_BATCH:
            batch.append(requests.get_nowait())
        try:  # in a thread, so that the server accepts requests meanwhile
            rows = await asyncio.to_thread(run.predict, [text for texts, _ in batch for text in texts])
        except Exception as error:
            rows = error
        start = 0
        for texts, answer in batch:
            if not answer.cancelled():  # the client has not gone
                if isinstance(rows, Exception):
                    answer.set_exception(rows)
                else:
                    answer.set_result(rows[start : start + len(texts)])
            start += len(texts)
