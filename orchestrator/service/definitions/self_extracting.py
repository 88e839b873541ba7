"""Folders as shell scripts: `solution/` and `tests/` are sent through a protocol that knows only text.

Each script contains its folder as a base64 tar.gz and needs nothing but bash, coreutils, tar and gzip where it runs.
The same folder gives the same bytes, so that a scenario read twice compares equal.
"""

import base64
import gzip
import io
import re
import shlex
import tarfile
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Final

from orchestrator.service.content import Node
from orchestrator.service.diagnostics import clipped, printable
from orchestrator.service.scoring import rewards

#: Bytes of a folder that is sent, packed and not.
MAX_PACKED_BYTES: Final = 32 << 20
MAX_UNPACKED_BYTES: Final = 4 * MAX_PACKED_BYTES
TEMPLATE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\}", re.DOTALL)
"""A value taken from the environment, as Harbor writes it: ${NAME} or ${NAME:-default}."""

_UNPACK: Final = Template("""\
#!/usr/bin/env bash
# Unpacks $folder, then $purpose.
set -euo pipefail
unset BASH_ENV ENV
shopt -s dotglob nullglob
root=$${SWEEP_ROOT:-} # where a devbox without folders of its own at / has them
if [[ ! -d $$root/home/user ]]; then
    echo "$folder is needed as a folder of the devbox's own; this is not a devbox" >&2
    exit 1
fi
mkdir -p "$$root$folder"
rm -rf -- "$$root$folder"/*
base64 -d <<'END_OF_ARCHIVE' | tar --no-same-owner -xzf - -C "$$root$folder"
$archive
END_OF_ARCHIVE
if [[ -n $$root ]]; then # the paths in scripts follow
    ours='(^|[^[:alnum:]_.@/-])/(app|logs|solution|tests)(/|[^[:alnum:]_.-]|$$)'
    escaped=$$(printf %s "$$root" | sed 's/[#&\\]/\\&/g')
    { find "$$root$folder" -type f -exec grep -IlE '/(app|logs|solution|tests)' {} + || true; } |
    while IFS= read -r file; do
        sed -i -E -e "s#$$ours#\\1@/\\2\\3#g" -e "s#$$ours#\\1@/\\2\\3#g" \\
            -e "s#@/(app|logs|solution|tests)#$$escaped/\\1#g" "$$file"
    done
fi
$exports
$enter""")
_SOLVE: Final = """\
export DEBIAN_FRONTEND=noninteractive
exec "$root/solution/solve.sh"
"""
_TEST: Final = r"""
logs=$root/logs/verifier
mkdir -p "$logs"
rm -rf -- "$logs"/*

# What the tests print goes to standard error: standard output carries the score alone.
status=0
"$root/tests/test.sh" </dev/null >&2 || status=$?

fail() { echo "$1 (tests/test.sh ended with status $status)" >&2; exit 1; }
if python3 -I -c 'import sys; sys.exit(sys.version_info < (3, 7))' 2>/dev/null; then
    said=$(python3 -I -W ignore - "$logs" 2>&1 <<'END_OF_READER'
"""
_TEST_WITHOUT_PYTHON: Final = r"""
END_OF_READER
) || fail "$said"
    printf '%s\n' "$said"
    exit 0
fi

# Without a Python, only what can be read without a doubt: all else is an error.
content() { # the content of file $1, with an x behind it
    [[ $(wc -c <"$1") -le 65536 ]] || fail "$1 has more than 65,536 bytes"
    tr '\0' '\1' <"$1"
    printf x
}
number='[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?'
strict='-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?'
gap=$'[ \t\r\n]*'
pair="$gap\"([^\"\\\\[:cntrl:]]*)\"$gap:$gap($strict)$gap"
if [[ -f "$logs/reward.json" ]]; then
    json=$(content "$logs/reward.json") json=${json%x}
    if [[ $json =~ ^$gap($strict)$gap$ ]]; then json="{\"reward\": ${BASH_REMATCH[1]}}"; fi
    [[ $json =~ ^$gap\{$pair(,$pair)*\}$gap$ ]] ||
        fail "/logs/verifier/reward.json is no object of numbers that can be read without python3: ${json:0:80}"
    rest=$json count=0 reward= only=
    while [[ $rest =~ $pair ]]; do
        if [[ ${BASH_REMATCH[1]} == reward ]]; then reward=${BASH_REMATCH[2]}; fi
        only=${BASH_REMATCH[2]} count=$((count + 1)) rest=${rest#*"${BASH_REMATCH[0]}"}
    done
    [[ -n $reward || $count == 1 ]] ||
        fail "/logs/verifier/reward.json has no reward named \"reward\", so there is no score: ${json:0:80}"
    echo "rewards=${json//[$'\t\r\n']/ }"
    echo "score=${reward:-$only}"
elif [[ -f "$logs/reward.txt" ]]; then
    text=$(content "$logs/reward.txt") text=${text%x}
    [[ -n $text ]] || fail "/logs/verifier/reward.txt is empty"
    [[ $text =~ ^[[:space:]]*($number)[[:space:]]*$ ]] ||
        fail "/logs/verifier/reward.txt is not a number: ${text:0:80}"
    echo "score=${BASH_REMATCH[1]}"
else
    fail "the tests wrote neither /logs/verifier/reward.txt nor /logs/verifier/reward.json"
fi
"""


def pack(nodes: Sequence[Node], read: Callable[[Node], bytes]) -> bytes:
    """Pack a tar.gz of the nodes, whose files `read` gives; the same bytes for the same content."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for node in nodes:
            entry, data = node.archived(node.path), read(node) if node.kind == "file" else b""
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), 9, mtime=0)


def solution_script(archive: bytes, *, working_directory: str, variables: Mapping[str, str]) -> str:
    """Return a script that unpacks `solution/` to /solution and executes its solve.sh in the working directory.

    solve.sh is executed as a file, so that its `#!` line counts; without one, bash executes it.
    """
    head = _head(archive, "/solution", "executes solve.sh in the working directory", working_directory, variables)
    return head + _SOLVE


def tests_script(archive: bytes, *, working_directory: str, variables: Mapping[str, str]) -> str:
    """Return a script that unpacks `tests/` to /tests, executes its test.sh and prints the reward that it wrote.

    It prints `rewards={...}`, one line of JSON, and then `score=x` (`scoring.rewards`); without Python in the box the
    first line may be missing. Its status is not 0, and it says why, when there is no reward that can be read.
    """
    head = _head(archive, "/tests", "executes test.sh and prints the score", working_directory, variables)
    reader = Path(rewards.__file__).read_text(encoding="utf-8").rstrip("\n")
    return f"{head}{_TEST}{reader}{_TEST_WITHOUT_PYTHON}"


def first_line_mistake(program: bytes) -> str | None:
    """Return the mistake, if any, in a program's first line, which names its interpreter to the kernel."""
    first = program.partition(b"\n")[0]
    if first.startswith(b"#!") and first.endswith(b"\r"):
        called = printable(first[2:].decode(errors="replace").strip(" "))
        return f"ends with CR LF, so the kernel looks for a program '{clipped(called)}': save it with LF alone"
    if first.startswith(BOM_UTF8):
        return "opens with a byte order mark, so its #! line is none and bash trips over it: save it without"
    return None


def _head(archive: bytes, folder: str, purpose: str, working_directory: str, variables: Mapping[str, str]) -> str:
    return _UNPACK.substitute(
        folder=folder,
        purpose=purpose,
        archive=base64.encodebytes(archive).decode().rstrip("\n"),
        exports="\n".join(export(name, value) for name, value in variables.items()),
        # an image's own is where the script is started
        enter=f'cd -- "$root"{shlex.quote(working_directory)}\n' if working_directory else "",
    )


def split(whole: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of variables as far as they are known, defaults included, and the templates among them."""
    found = {name: TEMPLATE.fullmatch(value) for name, value in whole.items()}
    values = {name: value if (match := found[name]) is None else match[2] for name, value in whole.items()}
    known = {name: value for name, value in values.items() if value is not None}
    return known, {name: value for name, value in whole.items() if found[name]}


def filled(templates: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the values of those templates whose variables are given."""
    found = {name: TEMPLATE.fullmatch(value) for name, value in templates.items()}
    return {name: given[match[1]] for name, match in found.items() if match and match[1] in given}


def export(name: str, value: str) -> str:
    """Return a line of bash that exports a variable; a template is filled in from the variables of the box."""
    found = TEMPLATE.fullmatch(value)
    if not found:
        return f"export {name}={shlex.quote(value)}"
    if found[2] is None:
        return f'export {name}="${{{found[1]}:?is needed and was not given}}"'
    return f"{name}=${{{found[1]}:-{shlex.quote(found[2])}}}; export {name}"
