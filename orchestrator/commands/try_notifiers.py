"""`sweep notify`: sends a test notification, and says what became of it."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio

from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.core.errors import UsageError
from orchestrator.engine.redact import Redactor
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.alerts import Alert, AlertKind
from orchestrator.view.console import say
from orchestrator.view.notify import VARIABLE, Notification, compose, failure_of, notifiers_of, refuse_typed


async def run(targets: Sequence[str], folder: Path | None, *, given: Mapping[str, str]) -> int:
    """Send a test to the targets and those in SWEEP_NOTIFY, of the sweep in a folder if there is one.

    `given` are variables beside the environment. Returns the exit code. Raises UsageError for a target that cannot
    work.
    """
    refuse_typed(targets, "sweep notify")
    notifiers = notifiers_of(targets, {**os.environ, **given}, given)
    if not notifiers:
        raise UsageError(f"Nobody is to be told: give a command, or set {VARIABLE}.")
    alert = Alert(kind=AlertKind.TEST, words="This is a test.")
    if folder is None:
        told = Notification(
            kind=AlertKind.TEST,
            title="sweep: a test",
            text=alert.words,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    else:
        found = await anyio.to_thread.run_sync(RecordedSweep, folder)
        told = compose(alert, sweep=found.manifest.sweep, folder=folder, ledger=found.ledger, plan=found.plan)
    failed = 0
    for notifier in notifiers:
        why = await failure_of(notifier, told.as_record(), Redactor(given.items()).value)
        say(f"{notifier.label}: told." if why is None else f"{notifier.label} failed: {why}.")
        failed += why is not None
    return EXIT_FAILED if failed else EXIT_OK
