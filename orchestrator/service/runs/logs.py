"""Everything that a scenario run left behind, as one zip: for people, and for the morning after.

    run.json              the run as the wire shows it        scoring/<function>.txt    what scoring functions printed
    devbox.json           its devbox                          executions/<id>.stdout    what commands printed; .stderr
    devbox.log.jsonl      the devbox's log, one entry a line  LEFT-OUT.txt              what was too large, if anything

What commands of a sweep's run printed is gone once it is completed or canceled (`ScenarioRuns.ended`). The zip is built
on disk, so that a run with gigabytes of output costs no memory.
"""

import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import anyio
import orjson

from orchestrator.service.devboxes.logs import collect
from orchestrator.service.devboxes.spool import STREAMS, spool_path
from orchestrator.service.serialization import view
from orchestrator.service.store import DEVBOXES, EXECUTIONS, SCENARIO_RUNS, Document, Store

MAX_TOTAL: Final = 512 << 20
_PIECE: Final = 1 << 20

Found = tuple[Document, Document, list[Document]]


class Logs:
    """`output` is where the output of commands is kept."""

    def __init__(self, *, store: Store, output: Path, limit: int = MAX_TOTAL) -> None:
        self._store = store
        self._output = output
        self._limit = limit

    async def zip(self, run_id: str) -> IO[bytes]:
        """An open temporary file at its start, which the caller closes. Raises NotFound."""
        found = await self._store.read(lambda db: _find(db, run_id))
        return await anyio.to_thread.run_sync(self._build, found)

    def _build(self, found: Found) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                self._fill(archive, found)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file

    def _fill(self, archive: zipfile.ZipFile, found: Found) -> None:
        run, devbox, executions = found
        archive.writestr("run.json", orjson.dumps(view(run), option=orjson.OPT_INDENT_2))
        archive.writestr("devbox.json", orjson.dumps(view(devbox), option=orjson.OPT_INDENT_2))
        entries = collect(self._output, devbox, executions, with_setup=True)
        archive.writestr("devbox.log.jsonl", b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
        for function in (run.get("scoring_contract_result") or {}).get("scoring_function_results", ()):
            archive.writestr(f"scoring/{function['scoring_function_name']}.txt", function["output"])
        left_out = list(self._add_outputs(archive, devbox["id"], executions))
        if left_out:
            archive.writestr("LEFT-OUT.txt", "".join(f"{name}\n" for name in left_out))

    def _add_outputs(self, archive: zipfile.ZipFile, devbox_id: str, executions: list[Document]) -> Iterator[str]:
        """Add what fits, newest command first; yields what does not."""
        room = self._limit
        for execution in reversed(executions):
            for stream in STREAMS:
                path = spool_path(self._output, devbox_id, execution["id"], stream)
                size = path.stat().st_size if path.exists() else 0
                name = f"executions/{execution['id']}.{stream}"
                if size > room:
                    yield f"{name}: {size} bytes"
                elif size:
                    room -= size
                    _add(archive, path, name)


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target, _PIECE)


def _find(db: sqlite3.Connection, run_id: str) -> Found:
    run = SCENARIO_RUNS.get(db, run_id)
    devbox = DEVBOXES.get(db, run["devbox_id"])
    return run, devbox, EXECUTIONS.select(db, {"devbox_id": devbox["id"]})
