"""Steps in a devbox between its boot and its first command: files are put in place, then scripts run.

Scripts run in the working directory, one after the other, and the first that fails ends the boot; so does a health
check that never passes. What they print is part of the devbox's log, and the end of it is in the message, because that
is all most people ever look at.
"""

import io
import posixpath
import tarfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import anyio

from orchestrator.service.devboxes.output import LogEntry, append_setup
from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.commands import Finished, run, write_file
from orchestrator.service.sandbox.prepared import Healthcheck, Prepared, StepStart
from orchestrator.service.sandbox.provider import HOME, Box, Command, shell
from orchestrator.service.store import now_ms

SCRIPT_TIMEOUT_S: Final = 3600.0
#: Less than clients wait for a step: its setup may run files of the agent, and then a hang is that agent's failure.
STEP_SETUP_TIMEOUT_S: Final = 600.0
_SHOWN: Final = 2000
#: Executes the file $0, and leaves nothing of it behind.
_EXECUTE: Final = '"$0"; status=$?; rm -rf -- "${0%/*}"; exit $status'
#: Removes folders in the way of files, and files in the way of folders, which end with a slash.
_CLEAR_WAY: Final = """\
while IFS= read -r each; do
    case $each in
    */) [ -d "$each" ] || rm -f -- "${each%/}" ;;
    *) [ -L "$each" ] || [ ! -d "$each" ] || rm -rf -- "$each" ;;
    esac
done
"""
#: Empties folders; a link in the place of one is replaced, and no link is followed.
_EMPTY: Final = """\
for each; do
    [ ! -L "$each" ] || { rm -f -- "$each" && mkdir -m 777 -- "$each"; }
    [ "$(cd -P -- "$each" 2>/dev/null && pwd)" != "$each" ] || rm -rf -- "$each"/* "$each"/.[!.]* "$each"/..?*
done
"""


def in_home(path: str) -> str:
    """Return an absolute path of the devbox; as published, a relative one starts at the home of its user."""
    return posixpath.join(HOME, path)


async def write_mounts(box: Box, mounts: Mapping[str, str]) -> None:
    """Write files, from path to contents. Raises BadRequest when one cannot be written, and BoxDied."""
    for path, contents in mounts.items():
        await write_file(box, in_home(path), contents.encode())


async def settle_in(box: Box, prepared: Prepared, output: Path) -> None:
    """Write an environment's files, run its scripts and wait until it is healthy.

    Raises BadRequest saying what failed, and BoxDied.
    """
    await write_mounts(box, prepared.files)
    await run_scripts(box, prepared.setup, output)
    if prepared.healthcheck is not None:
        await wait_healthy(box, prepared.healthcheck, output)


async def begin_step(box: Box, start: StepStart, directory: str, output: Path) -> None:
    """Make a devbox ready for a step, as `start` says. Raises BadRequest saying what failed, and BoxDied."""
    if start.workdir:
        with tarfile.open(fileobj=io.BytesIO(start.workdir), mode="r:gz") as archive:
            names = "".join(f"./{each.name}{'/' if each.isdir() else ''}\n" for each in archive)
        clearing = Command(argv=("sh", "-c", _CLEAR_WAY), cwd=directory, stdin=True, is_plain=True)
        await run(box, clearing, stdin=names.encode(), timeout=SCRIPT_TIMEOUT_S)
        unpack = Command(
            argv=("tar", "--no-same-owner", "-xzf", "-", "-C", box.path(directory)), stdin=True, is_plain=True
        )
        finished = await run(box, unpack, stdin=start.workdir, timeout=SCRIPT_TIMEOUT_S)
        if finished.status != 0:
            raise BadRequest(f"The files of the step cannot be put into {directory}: {finished.output[-_SHOWN:]}")
    if start.has_setup:
        bash = box.shell[0] if box.tools is None else f"{box.tools}/bash"  # no agent has changed ours
        setup = Command(argv=(bash, box.path(posixpath.join(directory, "setup.sh"))))
        await _run_one(box, "setup.sh", setup, output, timeout=STEP_SETUP_TIMEOUT_S)
    if start.healthcheck is not None:
        await wait_healthy(box, start.healthcheck, output, of="step")


async def clear_last_step(box: Box, home: str) -> None:
    """Empty the folders of the step before: of its tests and their rewards, of logs, and of our own steps."""
    folders = ("/tests", "/logs/verifier", "/logs/agent", "/logs/artifacts", f"{home}/.sweep")
    await run(
        box, Command(argv=("sh", "-c", _EMPTY, "sh", *map(box.path, folders)), is_plain=True), timeout=SCRIPT_TIMEOUT_S
    )


async def run_scripts(box: Box, scripts: Iterable[str], output: Path) -> None:
    """Execute the scripts as files, so that their `#!` lines count; one without is bash's.

    Raises BadRequest saying what went wrong, and BoxDied.
    """
    for script in scripts:
        file = f"/tmp/.setup-{token_hex(8)}/setup.sh"  # noqa: S108 - of the devbox
        await write_file(box, file, script.encode(), mode=0o755, as_user=True)
        argv = (*box.shell, _EXECUTE, box.path(file))
        await _run_one(box, script, Command(argv=argv), output)


async def run_commands(box: Box, commands: Iterable[str], output: Path) -> None:
    """Run the commands as users type them. Raises BadRequest saying what went wrong, and BoxDied."""
    for command in commands:
        await _run_one(box, command, shell(command, words=box.shell), output)


async def wait_healthy(box: Box, check: Healthcheck, output: Path, of: str = "environment") -> None:
    """Run a health check until it passes. Raises BadRequest when it failed too often, and BoxDied."""
    started, failures = anyio.current_time(), 0
    while True:
        is_early = anyio.current_time() - started < check.start_period
        command = shell(check.command, words=box.shell)
        finished = await _run(box, check.command, command, output, timeout=check.timeout)
        if finished.status == 0:
            return
        failures += not is_early
        if failures >= check.retries:
            what = f"The health check of the {of} ({of}.healthcheck) failed {failures} times in a row:"
            raise BadRequest(f"{what} {_problem(check.command, finished, check.timeout)}")
        await anyio.sleep(check.start_interval if is_early else check.interval)


async def _run_one(box: Box, script: str, command: Command, output: Path, *, timeout: float = SCRIPT_TIMEOUT_S) -> None:
    finished = await _run(box, script, command, output, timeout=timeout)
    if finished.status != 0:
        raise BadRequest(f"The setup command {_problem(script, finished, timeout)}")


async def _run(box: Box, script: str, command: Command, output: Path, *, timeout: float) -> Finished:
    """Run a command, and note in the devbox's log what it printed."""
    started = now_ms()
    finished = await run(box, command, timeout=timeout)

    def entry(at: int, *, level: str = "info", **fields: Any) -> LogEntry:
        return LogEntry(level=level, source="setup_commands", timestamp_ms=at, **fields)

    entries = [
        entry(started, cmd=script),
        *(entry(started, message=line) for line in finished.stdout.decode(errors="replace").splitlines()),
        *(
            entry(started, level="error", message=line)
            for line in finished.stderr.decode(errors="replace").splitlines()
        ),
        entry(now_ms(), exit_code=finished.status),
    ]
    devbox = box.id.partition(".")[0]  # a box of ours beside a devbox's own has its id before its own
    await anyio.to_thread.run_sync(partial(append_setup, output, devbox, entries))
    return finished


def _problem(script: str, finished: Finished, limit: float) -> str:
    first = script.strip().partition("\n")[0][:120]
    how = f"took longer than {limit:g} s" if finished.is_timed_out else f"exited with {finished.status}"
    said = finished.output.strip()[-_SHOWN:]
    return f"{first!r} {how}" + (f": {said}" if said else ", and printed nothing.")
