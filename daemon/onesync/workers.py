"""How a batch's work is shared out among the workers, and that none of it outlives the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Executor, wait
from typing import Any, TypeVar

T = TypeVar("T")


def begin(workers: Executor | None, act: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    """Let a worker do what is independent of what follows; returns what waits for its result.

    Without workers it is done at once.
    """
    if workers is not None:
        return workers.submit(act, *arguments).result
    done = act(*arguments)
    return lambda: done


def each(workers: Executor, act: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
    """Call ``act`` with every row of ``columns``, side by side; returns the results in order.

    Raises what a row that failed raised. By then nothing of it runs any more, and what was not
    begun never will: a worker that still writes would spoil what the failed batch is settled to,
    or what the next one does under the same names.
    """
    futures = [workers.submit(act, *row) for row in zip(*columns, strict=True)]
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        future.cancel()
    wait(futures)
    for future in futures:
        if not future.cancelled() and (error := future.exception()) is not None:
            raise error
    return [future.result() for future in futures]
