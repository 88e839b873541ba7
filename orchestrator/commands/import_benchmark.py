"""`sweep benchmarks import`: writes a benchmark's folder from another form."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from secrets import token_hex

from orchestrator.core.errors import UsageError
from orchestrator.core.printable import counted
from orchestrator.service.definitions.importers.forms import FORMS
from orchestrator.service.definitions.importers.scenario_folder import ImportedScenario
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.view.console import say


def run(form: str, files: Sequence[Path], target: Path, *, skip_unsupported: bool) -> None:
    """Write all scenarios of the files to a new folder, or nothing. Raises UsageError, naming file, line and key.

    With `skip_unsupported`, a scenario that cannot be had is left out by name.
    """
    if target.exists():
        raise UsageError(f"{target} is there already: name a new folder.")
    draft = target.with_name(f".{target.name}-{token_hex(4)}")
    seen: dict[str, Path] = {}
    left_out: list[UsageError] = []
    notes: Counter[str] = Counter()

    def read(file: Path) -> Iterator[ImportedScenario]:
        for found in FORMS[form](file):
            if isinstance(found, ImportedScenario):
                yield found
            else:
                left_out.append(found)

    try:
        draft.mkdir(parents=True)
        for file in files:
            for scenario in read(file):
                if (other := seen.setdefault(scenario.folder, file)) is not file or (draft / scenario.folder).exists():
                    raise UsageError(f"{file}: two scenarios are called {scenario.folder} (one is of {other}).")
                scenario.write(draft)
                notes[scenario.note] += 1
        if left_out and not skip_unsupported:
            more = f" {len(left_out) - 1} more cannot be had either." if left_out[1:] else ""
            raise UsageError(f"{left_out[0]}{more} --skip-unsupported leaves such scenarios out.")
        if not seen:
            raise UsageError(f"{', '.join(map(str, files))}: no scenario is in it.")
        draft.rename(target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}.") from None
    finally:
        if draft.exists():
            remove(draft)
    for reason in left_out:
        say(f"Left out: {reason}")
    for note, count in notes.items():
        if note:
            say(f"{counted(count, 'scenario')}: {note}.")
    say(f"Wrote {counted(len(seen), 'scenario')} to {target}. `sweep check {target} --static` reads them.")
