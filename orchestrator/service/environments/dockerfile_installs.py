"""Which commands of a script would install software, told from its words alone.

They need root and the network, which a devbox has not; told by line before anything is built, they come with what to
do, which the package manager's own complaint would not.
"""

import posixpath
import re
import shlex
from collections.abc import Sequence
from typing import Final

from orchestrator.service.environments.dockerlines import Mistake

_MANAGERS: Final = frozenset(
    {"apt", "apt-get", "aptitude", "apk", "dnf", "dpkg", "microdnf", "pacman", "yum", "zypper", "brew", "snap"}
)
_INSTALLERS: Final = frozenset({"pip", "pip3"})
_PREFIXES: Final = frozenset(
    {"sudo", "exec", "command", "env", "time", "nice", "then", "do", "else", "if", "while", "until", "!", "{", "eval"}
)


def refuse_installs(script: str) -> None:
    """Raises Mistake naming the program and what to do instead."""
    for words in _commands(script):
        program = posixpath.basename(words[0])
        if program in _MANAGERS:
            raise Mistake(
                f"{program} needs root and the network, and a devbox has neither; leave the line out if this machine "
                "has the program, or commit the files and COPY them to /app or /opt"
            )
        arguments = words[1:]
        if program.startswith("python") and arguments[:2] == ["-m", "pip"]:
            program, arguments = "pip", arguments[2:]
        if program == "uv" and arguments[:1] == ["pip"]:
            program, arguments = "pip", arguments[1:]
        if program in _INSTALLERS and "install" in arguments and "--no-index" not in arguments:
            raise Mistake(
                "pip install needs the network, and there is none; commit wheels, COPY them, and use "
                "pip install --no-index --find-links FOLDER --target /app/lib"
            )


def _commands(script: str) -> Sequence[list[str]]:
    """The simple commands of a shell script, as far as they can be told apart without running it."""
    lexer = shlex.shlex(script, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters = " \t\r", ""
    commands: list[list[str]] = [[]]
    try:
        for token in lexer:
            if token and all(char in "();|&\n" for char in token):
                commands.append([])
            elif commands[-1] or not (token in _PREFIXES or re.match(r"-|[A-Za-z_]\w*=", token)):
                commands[-1].append(token)
    except ValueError:
        return [words for words in commands if words]
    return [words for words in commands if words]
