"""`sweep benchmarks import`: writes a benchmark's folder from another form."""

from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

from orchestrator.core.errors import UsageError
from orchestrator.core.printable import counted
from orchestrator.service.definitions.importers.forms import FORMS
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.view.console import say


def run(form: str, files: Sequence[Path], target: Path) -> None:
    """Write all scenarios of the files to a new folder, or nothing. Raises UsageError, naming file, line and key."""
    if target.exists():
        raise UsageError(f"{target} is there already: name a new folder.")
    draft = target.with_name(f".{target.name}-{token_hex(4)}")
    seen: dict[str, Path] = {}
    try:
        draft.mkdir(parents=True)
        for file in files:
            for scenario in FORMS[form](file):
                if (other := seen.setdefault(scenario.folder, file)) is not file or (draft / scenario.folder).exists():
                    raise UsageError(f"{file}: two scenarios are called {scenario.folder} (one is of {other}).")
                scenario.write(draft)
        if not seen:
            raise UsageError(f"{', '.join(map(str, files))}: no row is in it.")
        draft.rename(target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}.") from None
    finally:
        if draft.exists():
            remove(draft)
    say(f"Wrote {counted(len(seen), 'scenario')} to {target}. `sweep check {target} --static` reads them.")
