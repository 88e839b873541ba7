"""The scoring that a scenario asks for: the box it runs in, the files it sees, and its tests.

The contract of the wire cannot say this: a client of the published protocol gets the tests as one self-extracting
script, which runs in any box it is given. Our own service knows better, and scores by this record.
Source of the keys: Harbor's task format, schema 1.4; `live` is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["separate", "shared", "live"]
"""`separate`: a fresh box, and only those files of the agent that may cross. `shared`: a new box over the same files.
`live`: the agent's own box, processes included."""

TESTS_PROGRAM = "test.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file or folder of the agent's box that is collected, and crosses to a separate scoring box at the same path.

    `source` is a path of the box, relative ones starting at the working directory; `destination` is relative to the
    folder of collected files, None for the mirror of its source. Neither has `..` in it. `exclude` are patterns as
    tar's.
    """

    source: str
    destination: str | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """A command that runs after the agent and before its artifacts are collected, by `bash -c` in the agent's box.

    It starts in the working directory. `timeout` is in seconds.
    """

    command: str
    timeout: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """The folder tests/ as the author wrote it.

    `archive` is a tar.gz whose members are relative to /tests and have the modes they get there, 755 for `program`
    whatever it had. `program` is executed as a file, by its path (`/tests/test.sh`) and in the working directory, so
    that its `#!` line counts; the kernel refuses a script without one (ENOEXEC), and then bash executes it:
    `bash /tests/test.sh`. A shell that executes it does both by itself: `bash -c /tests/test.sh`. Its exit status means
    nothing: `scoring.rewards` reads the file that it wrote.
    `variables` are the verifier's, as written: with templates (`self_extracting.TEMPLATE`: ${NAME}, ${NAME:-default})
    that are filled in from the variables of the box.
    """

    archive: bytes
    variables: Mapping[str, str] = field(default_factory=dict)
    program: str = TESTS_PROGRAM


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPlan:
    """The value of the key `_scoring` of a scenario's document.

    `tests` is None where the contract has other scorers: `[[scorers]]`, or those of a client. A scenario with
    `has_own_environment` has a verifier with an image of its own: it is refused before it starts.
    `working_directory` is the environment's.
    """

    mode: Mode = "shared"
    artifacts: tuple[Artifact, ...] = ()
    collect: tuple[Collect, ...] = ()
    tests: Tests | None = None
    has_own_environment: bool = False
    working_directory: str
