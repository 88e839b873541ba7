"""The logs of a scenario run as one zip: everything that it left behind, for people.

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
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import anyio
import orjson

from orchestrator.service.devboxes.output import STREAMS, collect, spool_path
from orchestrator.service.records import DevboxRecord, ExecutionRecord, ScenarioRunRecord
from orchestrator.service.serialization import view
from orchestrator.service.store import DEVBOXES, EXECUTIONS, SCENARIO_RUNS, Store

MAX_TOTAL: Final = 512 << 20
_PIECE: Final = 1 << 20

Found = tuple[ScenarioRunRecord, DevboxRecord, list[ExecutionRecord]]


class Logs:
    """`output` is where the output of commands is kept."""

    def __init__(self, *, store: Store, output: Path, limit: int = MAX_TOTAL) -> None:
        self._store = store
        self._output = output
        self._limit = limit

    async def zip(self, run_id: str) -> IO[bytes]:
        """An open temporary file at its start, which the caller closes. Raises NotFound."""

        def find(db: sqlite3.Connection) -> Found:
            run = SCENARIO_RUNS.get(db, run_id)
            return run, DEVBOXES.get(db, run.devbox_id), EXECUTIONS.select(db, {"devbox_id": run.devbox_id})

        found = await self._store.read(find)
        return await anyio.to_thread.run_sync(self._build, found)

    def _build(self, found: Found) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                self._fill(archive, *found)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file

    def _fill(
        self,
        archive: zipfile.ZipFile,
        run: ScenarioRunRecord,
        devbox: DevboxRecord,
        executions: Sequence[ExecutionRecord],
    ) -> None:
        archive.writestr("run.json", orjson.dumps(view(run), option=orjson.OPT_INDENT_2))
        archive.writestr("devbox.json", orjson.dumps(view(devbox), option=orjson.OPT_INDENT_2))
        entries = collect(self._output, devbox, executions, with_setup=True)
        archive.writestr("devbox.log.jsonl", b"".join(orjson.dumps(view(entry)) + b"\n" for entry in entries))
        for each in run.scoring_contract_result.scoring_function_results if run.scoring_contract_result else ():
            archive.writestr(f"scoring/{each.scoring_function_name}.txt", each.output)

        # Output of commands, the newest first, as far as there is room.
        room, left_out = self._limit, []
        for execution in reversed(executions):
            for stream in STREAMS:
                path = spool_path(self._output, devbox.id, execution.id, stream)
                size = path.stat().st_size if path.exists() else 0
                name = f"executions/{execution.id}.{stream}"
                if size > room:
                    left_out.append(f"{name}: {size} bytes\n")
                elif size:
                    room -= size
                    with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
                        shutil.copyfileobj(source, target, _PIECE)
        if left_out:
            archive.writestr("LEFT-OUT.txt", "".join(left_out))
