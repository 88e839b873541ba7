"""Names that make a program do what a file says when it is only looked at, and what such a file is called at home.

Shells, editors, version control and file managers take files of certain names for settings of their own, wherever they
come upon them, and settings have commands. `.git` becomes `dot-git`, `HEAD` becomes `not-HEAD`: by such a name no
program knows it, and everybody sees what it was. Without HEAD no folder is a repository, whatever it is called.
"""

import re
from typing import Final
from unicodedata import category, normalize

_SETTINGS: Final = frozenset(
    """
    .git .gitmodules .gitattributes .hg .svn .bzr .jj .sl .pijul _darcs head
    .envrc .direnv .env .autoenv .autoenv.zsh .mise .mise.toml .mise.local.toml mise.toml mise.local.toml .rtx.toml
    .tool-versions .rvmrc .sdkmanrc .venv .devenv .flox
    .vscode .idea .vs .fleet .zed .nova .helix .devcontainer .devcontainer.json .exrc .vimrc .nvimrc .nvim.lua
    .lvimrc .local.vimrc .dir-locals.el .dir-locals-2.el .cursor .mcp.json .aider.conf.yml .continue .windsurf
    .gdbinit .lldbinit .pdbrc .ghci .ocamlinit .rprofile .renviron .irbrc .pryrc .iex.exs .npmrc .yarnrc .yarnrc.yml
    .claude .gemini .codex .clinerules .aider .ycm_extra_conf.py .eslintrc.js .eslintrc.cjs .prettierrc.js
    .pnp.cjs .cargo .bundle .mvn .github .gitlab
    desktop.ini autorun.inf .directory
    """.split()  # noqa: SIM905 - a line for each kind
)
#: The same as DOS would call it: at most six letters, and a number.
_SHORT: Final = frozenset(name.lstrip(".")[:6] for name in _SETTINGS)
_SHORTENED: Final = re.compile(r"(.{1,6})~\d+(\..{0,3})?")


def harmless(name: str) -> str:
    """A file's or a folder's name as it is here: its own, or one that is no program's settings."""
    bare = _bare(name)
    known = normalize("NFKC", bare).casefold()
    short = _SHORTENED.fullmatch(known)
    if "\\" in name:  # where it separates folders, every part would have to be looked at
        return harmless(name.replace("\\", "_"))
    if known not in _SETTINGS and not (short and short[1] in _SHORT):
        return name
    return f"dot-{bare[1:]}" if known.startswith(".") and bare.startswith(".") else f"not-{bare}"


def _bare(name: str) -> str:
    """What file systems make of a name: without what is no letter, dots and blanks at the end, and streams."""
    visible = "".join(each for each in name if category(each) not in {"Cf", "Cc", "Cs", "Mn"} or each in "\t\n\r")
    return visible.partition(":")[0].rstrip(". \t\n\r") or name
