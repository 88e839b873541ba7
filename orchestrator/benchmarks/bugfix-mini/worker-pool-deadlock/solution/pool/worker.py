"""A thread of the pool."""

import queue
import threading

from pool.jobs import Job, Result


class Worker(threading.Thread):
    """Does jobs from one queue and puts the results into another, until it is given None."""

    def __init__(self, jobs: "queue.Queue[Job | None]", done: "queue.SimpleQueue[Result]") -> None:
        super().__init__()
        self.jobs = jobs
        self.done = done

    def run(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            try:
                result = Result(job.number, job.function(*job.args))
            except BaseException as error:  # a job must not end the thread that other jobs wait for
                result = Result(job.number, error=error)
            self.done.put(result)
            self.jobs.task_done()
