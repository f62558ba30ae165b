"""Work that is spread over all processor cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from facekit.files import InputError

MOST_WORKERS = 61  # Windows cannot wait for more


def in_parallel(function: Callable, jobs: Sequence[tuple], workers: int | None = None) -> Iterator[Any]:
    """The results of function(*job), in any order, from all cores unless told from how many processes.

    InputError when a process is killed.
    """
    if workers is None:  # to start a process takes as long as a few jobs
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(cores, len(jobs) // 4, MOST_WORKERS)
    if workers <= 1:
        yield from (function(*job) for job in jobs)
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        for future in as_completed([pool.submit(function, *job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise InputError("A process was killed, probably because memory ran out: close other programs, then run the "
                         "command again.") from None
    finally:
        pool.shutdown(cancel_futures=True)  # a stop or a full disk ends it now, not after all the others


def _start_worker() -> None:
    """Ctrl-C is for the parent. When the parent is killed, go too: nobody else may write into its files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
