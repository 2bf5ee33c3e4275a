"""Where the tasks of a synthesis run are performed: here, in worker processes, or on Ray.

An engine takes the work, the start of each task and a number of workers, and yields what each task left, in order. It holds a
bounded number of tasks, and is done with its workers when it ends, whatever ends it.
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

from differad.data.locks import as_worker, be_worker
from differad.errors import DifferadError, MissingExtraError
from differad.synthesis.store import NOTE, Done, Work, perform

Engine = Callable[[Work, range, int], Generator[Done, None, None]]
# Tasks in flight for each worker: enough that none waits while an earlier, slower task holds up the order.
AHEAD = 3
# Pairs in one task of Ray, some seconds of work: far more than it costs to hand out.
RAY_BLOCK = 256


def require_ray() -> Any:
    """The module ray, with Ray Data. Raises MissingExtraError."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("--engine ray", "ray", "ray[data]") from None
    return ray


def in_processes(work: Work, starts: range, workers: int) -> Generator[Done, None, None]:
    """On this machine: one worker draws in this process, more in processes of their own. Raises DifferadError."""
    if workers == 1:
        return _here(work, starts)
    return _in_pool(work, starts, workers)


def on_ray(work: Work, starts: range, workers: int) -> Generator[Done, None, None]:
    """With Ray Data, on the cluster that RAY_ADDRESS or an earlier `ray.init` names, else on one of `workers` cores here.

    Every node must see the output folder under the same path. Raises MissingExtraError.
    """
    ray = require_ray()
    own = not ray.is_initialized()
    if own:
        _start_ray(ray, workers)
    try:
        blocks = min(len(starts), max(2 * workers, -(-len(starts) * work.step // RAY_BLOCK)))
        numbers = ray.data.range(len(starts), override_num_blocks=blocks)
        done = numbers.map_batches(
            _perform_batch, batch_size=1, fn_kwargs={"work": work, "starts": starts}, concurrency=workers
        )
        done.context.execution_options.preserve_order = True
        done.context.enable_progress_bars = False
        for row in done.iter_rows():
            document = json.loads(row["done"])
            yield Done(tuple(document["lines"]), document["error"])
    finally:
        if own:
            ray.shutdown()


def _here(work: Work, starts: range) -> Generator[Done, None, None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for start in starts:
            yield perform(work, start)
    finally:
        cv2.setNumThreads(threads)


def _in_pool(work: Work, starts: range, workers: int) -> Generator[Done, None, None]:
    # Spawned: a fork would copy the locks of whatever threads the caller runs.
    context = multiprocessing.get_context("spawn")
    lifeline, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (lifeline, work.out / NOTE))
    waiting: deque[Future[Done]] = deque()
    to_come = iter(starts)
    try:
        with _interrupts_held():
            waiting.extend(pool.submit(perform, work, start) for start in islice(to_come, AHEAD * workers))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(perform, work, start) for start in islice(to_come, 1))
            yield done
        pool.shutdown()
    except BrokenProcessPool:
        raise DifferadError(
            "a worker process ended unexpectedly, perhaps for lack of memory; run the same again, with fewer workers: "
            "the set goes on where it stopped"
        ) from None
    finally:
        # Without this the tasks in flight would be waited for, a whole shard each.
        end.close()
        pool.shutdown(cancel_futures=True)
        lifeline.close()


def _start_worker(lifeline: Connection, note: Path) -> None:
    """Set a worker up to use one core, and to end with the run: a killed run closes its end of the pipe as well."""
    cv2.setNumThreads(1)
    be_worker(note)
    # After the lock: whoever goes on with a killed run waits for this worker, or finds it gone.
    if lifeline.poll():
        os._exit(1)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside see neither Ctrl-C nor a hang-up, which a terminal sends to all of them: they end with the run."""
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
    with as_worker(work.out / NOTE):
        done = [perform(work, starts[int(number)]) for number in batch["id"]]
    return {"done": [json.dumps({"lines": one.lines, "error": one.error}) for one in done]}


ENGINES: dict[str, Engine] = {"process": in_processes, "ray": on_ray}
