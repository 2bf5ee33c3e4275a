"""Engines that run the tasks of a synthesis run: this process, worker processes, or Ray.

An engine takes the work, the start of each task and a number of workers, and yields the tasks' results in order. It holds a
bounded number of tasks, and its workers end with it, whatever ends it.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2

from differad.data.locks import as_worker, hold_worker_lock
from differad.errors import DifferadError, MissingExtraError
from differad.synthesis.store import METADATA, TaskResult, Work, perform

Engine = Callable[[Work, range, int], Generator[TaskResult, None, None]]
# Tasks in flight for each worker: enough that no worker idles while an earlier, slower task delays the ordered results.
AHEAD = 3
# Pairs in one task of Ray: some seconds of work, far more than the cost of scheduling it.
RAY_BLOCK = 256


def require_ray() -> Any:
    """The module ray, with Ray Data. Raises MissingExtraError."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("--engine ray", "ray", "ray[data]") from None
    return ray


def in_processes(work: Work, starts: range, workers: int) -> Generator[TaskResult, None, None]:
    """On this machine: a single worker is this process, several are child processes. Raises DifferadError."""
    if workers == 1:
        return _in_this_process(work, starts)
    return _in_pool(work, starts, workers)


def on_ray(work: Work, starts: range, workers: int) -> Generator[TaskResult, None, None]:
    """With Ray Data, on the cluster that RAY_ADDRESS or an earlier `ray.init` names, else on `workers` local cores.

    Every node must see the output folder under the same path. Raises MissingExtraError.
    """
    ray = require_ray()
    starts_ray = not ray.is_initialized()
    if starts_ray:
        _start_ray(ray, workers)
    try:
        blocks = min(len(starts), max(2 * workers, -(-len(starts) * work.step // RAY_BLOCK)))
        numbers = ray.data.range(len(starts), override_num_blocks=blocks)
        results = numbers.map_batches(
            _perform_batch, batch_size=1, fn_kwargs={"work": work, "starts": starts}, concurrency=workers
        )
        results.context.execution_options.preserve_order = True
        results.context.enable_progress_bars = False
        for row in results.iter_rows():
            document = json.loads(row["result"])
            yield TaskResult(tuple(document["lines"]), document["error"])
    finally:
        if starts_ray:
            ray.shutdown()


def _in_this_process(work: Work, starts: range) -> Generator[TaskResult, None, None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for start in starts:
            yield perform(work, start)
    finally:
        cv2.setNumThreads(threads)


def _in_pool(work: Work, starts: range, workers: int) -> Generator[TaskResult, None, None]:
    # Spawned: a fork would copy the locks of the caller's threads.
    context = multiprocessing.get_context("spawn")
    lifeline, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (lifeline, work.out / METADATA))
    pending: deque[Future[TaskResult]] = deque()
    remaining = iter(starts)
    try:
        with _interrupts_held():
            pending.extend(pool.submit(perform, work, start) for start in islice(remaining, AHEAD * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(perform, work, start) for start in islice(remaining, 1))
            yield result
        pool.shutdown()
    except BrokenProcessPool:
        raise DifferadError(
            "a worker process ended unexpectedly, perhaps for lack of memory; run the same command again with fewer workers: "
            "the set is continued where it stopped"
        ) from None
    finally:
        # Otherwise the shutdown waits for the tasks in flight, a whole shard each.
        end.close()
        pool.shutdown(cancel_futures=True)
        lifeline.close()


def _start_worker(lifeline: Connection, metadata: Path) -> None:
    """Limit a worker to one core and let it end with the run: a killed run closes its end of the pipe too."""
    cv2.setNumThreads(1)
    hold_worker_lock(metadata)
    # After the lock: a run that continues a killed one waits for this worker, or finds that it ended.
    if lifeline.poll():
        os._exit(1)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C and hang-ups, which a terminal sends to all of them: they end with the run."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_ray(ray: Any, workers: int) -> None:
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level="WARNING")
    else:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="WARNING")


def _perform_batch(batch: dict[str, Any], work: Work, starts: range) -> dict[str, Any]:
    cv2.setNumThreads(1)
    with as_worker(work.out / METADATA):
        results = [perform(work, starts[int(number)]) for number in batch["id"]]
    return {"result": [json.dumps({"lines": result.lines, "error": result.error}) for result in results]}


ENGINES: dict[str, Engine] = {"process": in_processes, "ray": on_ray}
