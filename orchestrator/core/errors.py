"""Every failure of this project, as a tree whose branches say whose fault it was.

    SweepError
    ├── UsageError              the user's mistake: one line that names the fix, exit 2, nothing was spent
    │   └── SandboxUnavailable  this machine does not permit sandboxes
    ├── WorldError              the endpoint, the network, a devbox: retried with back-off, counted
    │   ├── Unavailable         no answer, a 5xx, or an answer that is not the endpoint's
    │   ├── Throttled           429 or "quota"; may say how long to wait
    │   ├── Refused             a 4xx: this request will not be answered
    │   │   ├── Unauthorized    401 or 403: no request of ours will be
    │   │   ├── Missing         404: no such thing there
    │   │   └── Conflicted      400, 409: the thing is in a state that forbids it
    │   ├── DevboxFailed        never became ready
    │   ├── DevboxLost          died, or was shut down, under us
    │   ├── RunLost             the scenario run was canceled or ended by somebody else
    │   ├── Interrupted         we were stopped, or died, and the attempt cannot be resumed; not counted
    │   ├── StageTimeout        a stage other than `solve` ran out of time
    │   └── AllowanceUsedUp     a devbox waited for its agent's turn until its own time ran short; not counted
    ├── AgentError              the agent's: an outcome, not retried unless asked
    │   ├── AgentSetupFailed    its install step failed
    │   ├── AgentCrashed        it ended with a status other than 0
    │   └── AgentTimedOut       it used up its time
    ├── ByHand                  a person ended the trial or the attempt: not tried again unless asked
    │   ├── Canceled            by `sweep cancel`
    │   └── Requeued            by `sweep requeue`: another attempt follows; not counted
    ├── Unsupported             the scenario cannot run there: it was not tried
    ├── EnvironmentFailed       the scenario's image cannot be built, or does not exist
    ├── ScoringFault            a scorer's: scored again, the agent is not run again
    ├── SweepCanceled           somebody else canceled our benchmark run: an order to stop
    ├── SweepHalted             the other trials would fail in the same way: stop, and name the fix
    ├── JournalError            the run folder cannot be written or read: stop, the journal stays as it is
    └── InternalError           ours: stop loudly

Whose fault it was is the type, which decides what is tried again: `retry_policy.py`. Messages name the thing and the
fix.
"""


class SweepError(Exception):
    """The root of the tree above."""

    @property
    def message(self) -> str:
        return str(self) or type(self).__name__


def leaf(error: BaseException) -> BaseException:
    """The first failure in a task group's group of failures; any other error unchanged."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class UsageError(SweepError):
    """The user can fix this; the message says how."""


class SandboxUnavailable(UsageError):
    """This machine does not permit sandboxes; the message says why and what to do."""


class WorldError(SweepError):
    """The world's fault."""


class Unavailable(WorldError):
    """No answer, an answer of 500 and above, or one that is not the endpoint's."""

    def __init__(self, message: str = "", *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        #: The HTTP status of the answer, if there was one.
        self.status = status
        #: Seconds that the endpoint asked us to wait, if it did.
        self.retry_after = retry_after


class Throttled(WorldError):
    """The endpoint asks for less."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        #: Seconds that the endpoint asked us to wait, if it did.
        self.retry_after = retry_after


class Refused(WorldError):
    """The endpoint will not answer this request, now or later."""


class Unauthorized(Refused):
    """The key is not good enough."""


class Missing(Refused):
    """The endpoint knows no such thing."""


class Conflicted(Refused):
    """The thing is in a state that forbids the request."""


class DevboxFailed(WorldError):
    """The devbox never became ready."""


class DevboxLost(WorldError):
    """The devbox died, or somebody shut it down, while we used it."""


class RunLost(WorldError):
    """Somebody else ended the scenario run."""


class Interrupted(WorldError):
    """We were stopped, or died, and the attempt cannot be resumed."""


class StageTimeout(WorldError):
    """A stage other than `solve` ran out of time."""


class AllowanceUsedUp(WorldError):
    """The devbox waited for its agent's turn for as long as its keep-alive allows."""


class AgentError(SweepError):
    """The agent's fault."""


class AgentSetupFailed(AgentError):
    """The agent's install step failed."""


class AgentCrashed(AgentError):
    """The agent ended with a status other than 0."""


class AgentTimedOut(AgentError):
    """The agent used up its time."""


class ByHand(SweepError):
    """A person's order ended it; the message says whose, and why."""


class Canceled(ByHand):
    """The trial was given up."""


class Requeued(ByHand):
    """The attempt was ended, and another follows."""


class Unsupported(SweepError):
    """The endpoint lacks something that a scenario needs, or the definition cannot be read."""


class EnvironmentFailed(SweepError):
    """The image that the scenario's devboxes start from cannot be built, or does not exist."""


class ScoringFault(SweepError):
    """A scorer's fault."""


class SweepCanceled(SweepError):
    """Somebody else canceled the benchmark run that our trials belong to."""


class SweepHalted(SweepError):
    """Too many failures that are no trial's fault. The message names the cause and the fix."""


class JournalError(SweepError):
    """The run folder cannot be read or written."""


class InternalError(SweepError):
    """A mistake of this program."""
