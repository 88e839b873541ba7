"""A thread of the pool."""

import queue
import threading

from pool.jobs import Job, Result


class Worker(threading.Thread):
    """Does jobs from one queue and puts the results into another, until it is given None."""

    def __init__(self, jobs: "queue.Queue[Job | None]", done: "queue.Queue[Result]") -> None:
        super().__init__()
        self.jobs = jobs
        self.done = done

    def run(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            value = job.function(*job.args)
            if value is not None:
                self.done.put(Result(job.number, value))
            self.jobs.task_done()
