"""Makes the programs of an install independent of the root that they run in: a box of any image.

Its secret: the two ways in which a file names the program that runs it. A `#!` line names an interpreter, and an ELF
file its loader; both are changed to programs of ours where there are such. Libraries that look for others in folders
of their own get the folder of ours besides; all others look where the program does that loads them.

Our own Python runs this file in the box that made the install, because the files are not trusted: `independence.py
FOLDER PLACE`, with all that is in FOLDER, which will be at PLACE. Programs linked to another C library, and for other
machines, stay as they are. It fails, and names them, if there are links to programs of the machine: a virtual
environment of another Python than ours is one.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

#: As in `sandbox.closure`, which cannot be imported here.
OURS = "/.sweep"
LIBRARIES = f"{OURS}/so"
PATCHELF = f"{OURS}/tools/bin/patchelf"
#: Where the interpreters of scripts are looked for, beside the install's own `bin`.
FOLDERS = (f"{OURS}/toolchain/bin", f"{OURS}/bin", f"{OURS}/tools/bin")
#: Bytes that the kernel reads of a `#!` line.
LINE_BYTES = 256


def main(folder: Path, place: str) -> None:
    if links := list(links_out(folder, place)):
        sys.exit("\n".join(f"{link} leads to {os.readlink(link)}, which an image may not have" for link in links))  # noqa: PTH115
    for file in files(folder):
        with file.open("rb") as opened:
            first = opened.readline(LINE_BYTES)
        if first.startswith(b"\x7fELF"):
            patch(file)
        elif first.startswith(b"#!") and first.endswith(b"\n") and os.access(file, os.X_OK):
            line = interpreted(os.fsdecode(first[2:]).split(), folder, place)
            if line:
                rewrite(file, len(first), line)


def links_out(folder: Path, place: str) -> Iterator[Path]:
    """Yield the links to programs that are neither in the folder nor ours."""
    for above, folders, names in os.walk(folder):
        for link in (Path(above, name) for name in (*folders, *names)):
            target = os.readlink(link) if link.is_symlink() else ""  # noqa: PTH115
            is_program = os.path.isabs(target) and link.is_file() and os.access(link, os.X_OK)  # noqa: PTH117
            if is_program and not target.startswith((f"{OURS}/", f"{place}/", f"{folder}/")):
                yield link


def files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, each of several names once."""
    seen = set()
    for above, _, names in os.walk(folder):
        for file in (Path(above, name) for name in names):
            status = file.lstat()
            if file.is_file() and not file.is_symlink() and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield file


def interpreted(words: list[str], folder: Path, place: str) -> str:
    """Return the `#!` line with a program of ours in it; "" if there is none, or it is one already."""
    asks_env = bool(words) and os.path.basename(words[0]) == "env"  # noqa: PTH119
    splits = asks_env and words[1:2] == ["-S"]
    program, *arguments = words[(2 if splits else 1) if asks_env else 0 :] or [""]
    if not program or program.startswith((f"{OURS}/", f"{place}/", f"{folder}/")):
        return ""
    name = os.path.basename(program)  # noqa: PTH119
    candidates = [f"{place}/bin/{name}"] if (folder / "bin" / name).exists() else []
    candidates += [f"{each}/{name}" for each in FOLDERS if os.path.exists(f"{each}/{name}")]  # noqa: PTH110
    if not candidates:
        return ""
    env = [f"{OURS}/tools/bin/env", "-S"] if splits and len(arguments) > 1 else []
    return " ".join(("#!", *env, candidates[0], *arguments)).replace("#! ", "#!", 1)


def rewrite(file: Path, length: int, line: str) -> None:
    """Put a line in place of the first `length` bytes."""
    rest = file.read_bytes()[length:]
    mode = file.stat().st_mode
    file.chmod(mode | 0o200)
    file.write_bytes(os.fsencode(line) + b"\n" + rest)
    file.chmod(mode)


def patch(file: Path) -> None:
    loader = os.path.basename(ask("--print-interpreter", file))  # noqa: PTH119
    if loader.startswith("ld-linux"):
        words = ["--set-interpreter", f"{LIBRARIES}/ld.so", "--force-rpath", "--add-rpath", LIBRARIES]
    elif not loader and ask("--print-rpath", file):
        words = ["--force-rpath", "--add-rpath", LIBRARIES]
    else:
        return
    mode = file.stat().st_mode
    file.chmod(mode | 0o200)
    done = subprocess.run([PATCHELF, *words, file], capture_output=True, text=True, check=False)
    file.chmod(mode)
    if done.returncode:
        sys.stderr.write(f"{file} cannot be changed: {done.stderr.strip()}\n")


def ask(question: str, file: Path) -> str:
    return subprocess.run([PATCHELF, question, file], capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
