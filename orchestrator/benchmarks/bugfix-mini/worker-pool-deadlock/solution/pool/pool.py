"""The pool: submit jobs, close, look at the results."""

import queue
from collections.abc import Callable
from typing import Any

from pool.jobs import Job, Result
from pool.worker import Worker


class Pool:
    def __init__(self, workers: int = 4, backlog: int = 16) -> None:
        self.jobs: queue.Queue[Job | None] = queue.Queue(backlog)
        self.done: queue.SimpleQueue[Result] = queue.SimpleQueue()  # unbounded: nobody reads it before the end
        self.found: list[Result] = []
        self.submitted = 0
        self.closed = False
        self.workers = [Worker(self.jobs, self.done) for _ in range(workers)]
        for worker in self.workers:
            worker.start()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, function: Callable[..., Any], *args: Any) -> int:
        """Has `function(*args)` done by a thread; returns the number of the job."""
        if self.closed:
            raise RuntimeError("the pool is closed")
        number = self.submitted
        self.submitted += 1
        self.jobs.put(Job(number, function, args))
        return number

    def close(self) -> None:
        """Waits for the submitted jobs and ends the threads."""
        if self.closed:
            return
        self.closed = True
        self.jobs.join()
        for _ in self.workers:
            self.jobs.put(None)
        for worker in self.workers:
            worker.join()

    def results(self) -> list[Result]:
        """The results in the order in which the jobs were submitted."""
        self.close()
        while not self.done.empty():
            self.found.append(self.done.get())
        self.found.sort(key=lambda result: result.number)
        return list(self.found)
