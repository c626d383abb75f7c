"""Work for many processes, of this machine or of a dask cluster, of which some may die."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures.process import BrokenProcessPool

import joblib
import torch

from synthnb.data.shards import DatasetError

DEATHS = 5  # of workers in a row, without a result between them, before it is given up


def each(
    function: Callable, jobs: dict[Hashable, tuple], workers: int | str = -1
) -> Iterator[tuple[Hashable, object]]:
    """Call `function(*jobs[key])` for every key, in parallel; yields keys and results as they come.

    What a dying worker has left is done again. Raises `DatasetError` if workers die again and again.

    Args:
        workers: processes, -1 takes all cores; or the address of a dask scheduler (`tcp://host:8786`).
    """
    jobs, deaths = dict(jobs), 0
    with _backend(workers) as (count, died):
        while jobs:
            pool = joblib.Parallel(n_jobs=count, return_as="generator_unordered", batch_size=1)
            try:
                for key, result in pool(joblib.delayed(_one)(function, *job) for job in list(jobs.items())):
                    deaths = 0
                    del jobs[key]
                    yield key, result
            except died as error:
                deaths += 1
                if deaths == DEATHS:
                    raise DatasetError(
                        f"workers died {DEATHS} times in a row ({str(error).splitlines()[0]}); is there memory for "
                        f"{count} of them? What is complete stays"
                    ) from error


def _one(function: Callable, key: Hashable, job: tuple) -> tuple[Hashable, object]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # workers share the cores; a single worker is this process
    try:
        return key, function(*job)
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _backend(workers: int | str) -> Iterator[tuple[int, tuple[type[Exception], ...]]]:
    """How joblib runs jobs: how many at a time, and what is raised when a worker dies."""
    if not isinstance(workers, str):
        yield workers, (BrokenProcessPool,)
        return
    import distributed

    try:
        client = distributed.Client(workers, timeout=30)
    except (OSError, ValueError) as error:
        raise DatasetError(f"no dask scheduler answers at {workers}: {error}") from error
    with client, joblib.parallel_config("dask"):
        yield -1, (distributed.KilledWorker, distributed.comm.CommClosedError)
