"""What this service does beyond the published protocol, as values.

The orchestrator must get along with endpoints that do less; `testing.strict_compat` is such a one. Each part that goes
beyond the protocol reads its one word here, so that nothing else in the service knows there are two.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a service speaks and judges."""

    #: It has the routes below /v1/sweep.
    has_own_routes: bool
    #: A run that is scoring or scored may be asked for its score again, which starts nothing; a failed one is scored.
    is_rescoring: bool
    #: A scoring function in `error` fails the run; else it counts 0 in the score of a run that is `scored`.
    is_error_failure: bool
    #: The metadata of a scenario run is on its devbox, too. The published documents do not say so.
    is_devbox_labelled: bool
    #: Scorers run in boxes of their own where the provider can make these; else in the agent's, as it is.
    is_scored_apart: bool


OURS: Final = Dialect(
    has_own_routes=True,
    is_rescoring=True,
    is_error_failure=True,
    is_devbox_labelled=True,
    is_scored_apart=True,
)
