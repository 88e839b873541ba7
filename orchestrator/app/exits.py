"""Exit codes, and the one line that a failure deserves."""

from typing import Final

from orchestrator.errors import SweepError, Unauthorized, UsageError, leaf

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_MISUSE: Final = 2
EXIT_INTERRUPTED: Final = 130


def exit_code_of(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line that a failure deserves. Raises it again if it is none of ours."""
    cause = leaf(error)
    if isinstance(cause, BrokenPipeError):
        return EXIT_FAILED, ""  # whoever read what we print has gone
    if not isinstance(cause, SweepError):
        raise error
    is_misuse = isinstance(cause, UsageError | Unauthorized)
    return (EXIT_MISUSE if is_misuse else EXIT_FAILED), cause.message
