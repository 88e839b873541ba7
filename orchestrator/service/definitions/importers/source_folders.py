"""Folders of benchmarks in other forms: where their scenarios are, and the files that become files of ours."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.core.errors import UsageError


def find_folders(place: Path, mark: str, *patterns: str) -> list[Path]:
    """Return `place` if the file `mark` is in it, else the folders at these patterns in which it is. Blocking.

    Raises UsageError where there is none.
    """
    candidates = [place, *(each for pattern in patterns for each in sorted(place.glob(pattern)))]
    found = [each for each in candidates if (each / mark).is_file()]
    if not found:
        raise UsageError(f"{place}: no {mark} is in it, nor in {' or '.join(patterns)} of it.")
    return found[:1] if found[0] == place else found


def read_text(file: Path) -> str:
    """Read a file with the ends of lines that it has. Blocking. Raises UsageError."""
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"{file}: cannot be read: {why}.") from None


def files_below(folder: Path, *, into: str, without: Iterable[str] = ()) -> Mapping[str, Path]:
    """Return {path below `into`: file} of all files of a folder but those at or below the paths `without`. Blocking.

    A folder that is not there has none. Raises UsageError for a link that leads out of the folder.
    """
    left_out, whole = [folder / name for name in without], folder.resolve()
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or any(file.is_relative_to(each) for each in left_out):
            continue
        if not file.resolve().is_relative_to(whole) or not file.is_file():
            raise UsageError(f"{file}: is a link that leads to no file of {folder}.")
        found[f"{into}/{file.relative_to(folder)}"] = file
    return found
