"""Gate: jobs whose bwrap waits, before the command, until something was done to its sandbox."""

from __future__ import annotations

import os
import resource
import select

from . import inside
from .job import Job


class Gate:
    """Lets each job that it holds go on once its pid 1 exists, was prepared, and is bounded.

    Args:
        poll: of the loop, which calls `happened` for the descriptors that are registered here.
    """

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._held: dict[int, Job] = {}
        self._by_helper: dict[int, Job] = {}

    @property
    def helpers(self) -> set[int]:
        """The pids that prepare a sandbox now."""
        return set(self._by_helper)

    def hold(self, job: Job) -> None:
        """Watch for its pid 1."""
        self._held[job.status_fd] = job
        self._poll.register(job.status_fd, select.POLLIN)

    def happened(self, status_fd: int) -> None:
        """Once pid 1 exists, prepare its sandbox, and let bwrap go on to the command."""
        job = self._held.get(status_fd)
        if job is None:
            return
        job.read_status()
        if not job.init:
            return
        self._stop_watching(job)
        if job.preparation is None:
            self._let_go(job)
            return
        try:
            job.helper = inside.start(job.init, job.outer, job.preparation.uid, job.preparation.work)
        except OSError as error:
            self._give_up(job, f"it could not be prepared: {error.strerror}")
        else:
            self._by_helper[job.helper] = job
        job.preparation.close()

    def helper_ended(self, pid: int, status: int) -> Job | None:
        """Take note of a reaped process. Return its job, which may be over now; None when it was no helper."""
        job = self._by_helper.pop(pid, None)
        if job is None:
            return None
        job.helper = 0
        if job.wait_status is None:
            if failure := inside.failure(status):
                self._give_up(job, failure)
            else:
                self._let_go(job)
        return job

    def forget(self, job: Job) -> None:
        """Close what is left of a job that is over, or was let go."""
        self._stop_watching(job)
        if job.block_fd >= 0:
            os.close(job.block_fd)
            job.block_fd = -1

    def _let_go(self, job: Job) -> None:
        """Bound the processes inside and start the command.

        Set before bwrap, the limit would count every process of the server's user; inside the new user namespace it
        counts the sandbox's own.
        """
        limit = job.processes_inside
        try:
            if job.is_init:
                if limit >= 0:
                    _, hard = resource.prlimit(job.init, resource.RLIMIT_NPROC)
                    # A lower one that is there already is as good, and cannot be passed.
                    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
                    resource.prlimit(job.init, resource.RLIMIT_NPROC, (limit, limit))
                os.write(job.block_fd, b"\0")
                self.forget(job)
        except OSError as error:
            self._give_up(job, f"its processes could not be bounded: {error.strerror}")

    def _give_up(self, job: Job, reason: str) -> None:
        """End a job whose command must not run. The block stays."""
        if not job.killed:
            job.failure = reason
            job.kill()

    def _stop_watching(self, job: Job) -> None:
        if self._held.pop(job.status_fd, None) is not None:
            self._poll.unregister(job.status_fd)
