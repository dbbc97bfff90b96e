"""Large bodies are taken apart one at a time: each needs several times its bytes, and some steps hold up every other thread meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SMALL = 64 * 1024
"""Bytes up to which a body is taken apart faster than handed to a thread."""

_thread = ThreadPoolExecutor(1, thread_name_prefix="large-body")


async def in_turn(work: Callable[[], T]) -> T:
    """The result of `work`, called in the one thread for it. A caller that gives up before its turn leaves the line."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work)
