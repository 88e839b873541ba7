"""Benchmarks from elsewhere: found by their words, fetched for a command, searched and updated."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import msgspec
from anyio.to_thread import run_sync

from orchestrator.commands import BUNDLED
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.common import logging_setup
from orchestrator.core.errors import SweepError, Unavailable, UsageError, WorldError
from orchestrator.core.printable import byte_size, counted
from orchestrator.service.definitions.sets.source import RegistryName, parse_source
from orchestrator.view.console import print_record, print_rows, say
from orchestrator.view.formats import Format
from orchestrator.view.progress import shown

if TYPE_CHECKING:
    from orchestrator.service.definitions.sets.benchmark_registry import Registry
    from orchestrator.service.definitions.sets.copies import Copies

_ID: Final = re.compile(r"bmd_[0-9a-f]+")
#: Characters of a description.
_LONGEST: Final = 60
#: Characters of a copy's id, and of a commit.
_SHOWN_KEY: Final = 12


@dataclass(slots=True)
class Doing:
    """What is being done now, for the screen."""

    words: str = ""

    def tell(self, words: str) -> None:
        self.words = words


async def fetch(
    benchmark: str,
    registries: Sequence[str],
    *,
    endpoint: str | None,
    origin: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[str, Mapping[str, Any] | None]:
    """Fetch a benchmark that is not on this machine yet; returns its folder, and what it was made from.

    A folder, a bundled benchmark and one of an `endpoint` are returned as they are, and were made from nothing.
    `origin` is what it was made from before: the same is made again. Raises UsageError and WorldError.
    """
    source = parse_source(benchmark)
    if origin is None and (source is None or (isinstance(source, RegistryName) and _is_known(source, endpoint))):
        return benchmark, None
    if endpoint:
        raise UsageError(
            f"{benchmark} is fetched to this machine, which {endpoint} cannot see: leave out --endpoint and "
            "RUNLOOP_BASE_URL to serve it here."
        )

    from orchestrator.service.definitions.sets.copies import Copies, CopyOrigin

    logging_setup.warn_only()
    copies = Copies(registries, tell)
    try:
        if origin is not None:
            found = msgspec.convert(origin, CopyOrigin)
        else:
            assert source is not None
            found = await copies.find_origin(source)
        return str(await copies.get(found)), msgspec.to_builtins(found)
    except Unavailable as error:
        if isinstance(source, RegistryName):
            raise Unavailable(f"There is no benchmark {benchmark!r} here, and elsewhere: {error.message}") from None
        raise
    except msgspec.ValidationError as error:
        raise UsageError(f"The sweep's manifest.json is damaged: origin: {error}.") from None
    except OSError as error:
        raise WorldError(f"{benchmark} cannot be kept here: {error}.") from error


def _is_known(source: RegistryName, endpoint: str | None) -> bool:
    """Tell whether a name is for the endpoint to find: another one's, an id, a bundled benchmark, or nearly one."""
    bundled = [folder.name for folder in BUNDLED.iterdir() if folder.is_dir()]
    is_near = not source.version and get_close_matches(source.name, bundled, 1)
    return bool(endpoint or is_near or _ID.fullmatch(source.name))


async def fetch_shown(benchmark: str, registries: Sequence[str], output: Format, *, endpoint: str | None = None) -> str:
    """Fetch a benchmark as `fetch` does, and show how it goes on; returns its folder."""
    doing = Doing()
    async with shown(benchmark, lambda: doing.words, output):
        return (await fetch(benchmark, registries, endpoint=endpoint, tell=doing.tell))[0]


async def get(benchmarks: Sequence[str], registries: Sequence[str], output: Format) -> int:
    """Fetch benchmarks; one that fails does not keep the others away. Returns the exit code."""
    code = EXIT_OK
    for each in benchmarks:
        try:
            folder = await fetch_shown(each, registries, output)
        except SweepError as error:
            say(f"sweep: {error.message}", to_stderr=True)
            code = EXIT_FAILED
            continue
        if output.is_for_programs:
            print_record({"benchmark": each, "folder": folder}, output)
        else:
            say(f"{each}: {folder}")
    return code


async def list_copies(output: Format) -> list[dict[str, object]]:
    """Return a row for each benchmark that was fetched: what it is, and where it is from. Raises WorldError."""
    rows = list[dict[str, object]]()
    with _kept_copies() as copies:
        kept = await run_sync(copies.kept)
    for each in kept:
        fetched_at = datetime.fromtimestamp(each.fetched_at, UTC)
        commits = {part.commit for part in each.origin.parts}
        places = sorted({part.url for part in each.origin.parts}) or [each.origin.archive]
        row = {"id": each.key[:_SHOWN_KEY], "name": each.origin.name, "scenarios": each.scenarios}
        if output.is_for_programs:
            when = fetched_at.isoformat(timespec="seconds")
            rows.append({**row, "commits": sorted(commits), "size_bytes": each.size, "fetched": when, "from": places})
            continue
        commit = f"{len(commits)} commits" if len(commits) > 1 else next(iter(commits), "")[:_SHOWN_KEY] or None
        when = fetched_at.astimezone().strftime("%Y-%m-%d %H:%M")
        rows.append({**row, "commit": commit, "size": byte_size(each.size), "fetched": when, "from": " ".join(places)})
    return rows


def list_public(output: Format) -> None:
    """List the public sets that we know how to get; nothing is asked of a network."""
    from orchestrator.service.definitions.sets.public_sets import public_sets

    if output.is_for_programs:
        for each in public_sets():
            print_record(msgspec.to_builtins(each), output)
        return
    for each in public_sets():
        facts = [
            f"{each.tasks:,} tasks" if each.tasks else "",
            each.licence or "",
            byte_size(each.size) if each.size else "",
            f"needs {each.needs}" if each.needs else "",
        ]
        say(f"{each.name}: {each.description}")
        say(f"  {'; '.join(filter(None, facts))}")
        if found := each.checked:
            proved = f", {found.proved:,} proved by their solutions" if found.proved is not None else ""
            why = f"; {found.why}" if found.why else ""
            say(f"  sweep check, {found.on}: {found.can_run:,} of {found.of:,} can run{proved}{why}")
        say(f"  sweep run '{each.get}'" if each.get else f"  sweep benchmarks import {each.form} FILE, of {each.file}")


async def remove(names: Sequence[str]) -> int:
    """Remove fetched benchmarks by name or id; one that a process uses stays. Returns the exit code.

    Raises UsageError for a name that none has, before anything is removed, and WorldError.
    """
    code = EXIT_OK
    with _kept_copies() as copies:
        kept = await run_sync(copies.kept)
        words = {each.key: {each.origin.name, each.key[:_SHOWN_KEY]} for each in kept}
        if strange := [name for name in names if not any(name in known for known in words.values())]:
            fetched = ", ".join(dict.fromkeys(each.origin.name for each in kept)) or "none"
            raise UsageError(f"There is no fetched benchmark {strange[0]!r} here. Fetched: {fetched}.")
        for each in kept:
            if words[each.key].isdisjoint(names):
                continue
            is_gone = await run_sync(copies.remove, each)
            what = "removed" if is_gone else "in use by a running process; it stays"
            say(f"{each.origin.name} ({each.key[:_SHOWN_KEY]}): {what}.")
            code = code if is_gone else EXIT_FAILED
    return code


@contextmanager
def _kept_copies() -> "Iterator[Copies]":
    """Open the copies that are here; what the disk refuses is a WorldError."""
    from orchestrator.service.definitions.sets.copies import Copies

    logging_setup.warn_only()
    try:
        yield Copies((), lambda _: None)
    except OSError as error:
        raise WorldError(f"The fetched benchmarks cannot be read or removed: {error}.") from error


async def search(word: str, registries: Sequence[str], output: Format) -> int:
    """List what the registries have whose name or description matches; returns the exit code.

    Raises UsageError and WorldError.
    """
    found = await _registries(registries, output, is_fresh=False)
    pattern = (word if any(sign in word for sign in "*?[") else f"*{word}*").lower()
    rows = [
        {
            "benchmark": each.words,
            "tasks": len(each.tasks),
            "description": each.description if output.is_for_programs else each.description[:_LONGEST],
        }
        for registry in found
        for each in registry.benchmarks
        if fnmatchcase(each.name.lower(), pattern) or fnmatchcase(each.description.lower(), pattern)
    ]
    if not rows and not output.is_for_programs:
        say(f"Nothing matches {word!r} in {', '.join(each.place for each in found)}.")
        return EXIT_FAILED
    print_rows(rows, output)
    return EXIT_OK


async def update(registries: Sequence[str], output: Format) -> int:
    """Read the registries anew; returns the exit code. Raises UsageError and WorldError."""
    for each in await _registries(registries, output, is_fresh=True):
        if output.is_for_programs:
            print_record({"registry": each.place, "benchmarks": len(each.benchmarks)}, output)
        else:
            say(f"{each.place}: {counted(len(each.benchmarks), 'benchmark')}.")
    return EXIT_OK


async def _registries(places: Sequence[str], output: Format, *, is_fresh: bool) -> "Sequence[Registry]":
    from orchestrator.service.definitions.sets.copies import Copies

    logging_setup.warn_only()
    doing = Doing()
    async with shown("Registries:", lambda: doing.words, output):
        return await Copies(places, doing.tell).registries(is_fresh=is_fresh)
