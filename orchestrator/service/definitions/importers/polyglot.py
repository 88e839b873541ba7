"""Exercises in Exercism's layout, as Aider's polyglot benchmark has them: stubs to fill in, and tests by language.

An exercise is `.meta/config.json`, which names its files by their part, `.docs/` and the rest. Which programs run the
tests, with which versions and packages, are that benchmark's own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import ScoringMode
from orchestrator.service.definitions.importers.rows import SourceRow
from orchestrator.service.definitions.importers.scenario_folder import REWARD, ImportedScenario
from orchestrator.service.definitions.importers.source_folders import files_below, find_folders, read_text

_CONFIG: Final = ".meta/config.json"
_DOCS: Final = ("introduction.md", "instructions.md", "instructions.append.md")
#: Of an exercise in Rust, what its example needs of packages.
_EXAMPLES_CARGO: Final = ".meta/Cargo-example.toml"
#: Seconds: of a run of tests, and of a scorer beside it.
_LIMIT_S: Final = 180.0
_SCORER_S: Final = 60.0
_STATEMENT: Final = """
The files to change are in the working directory: {files}. Keep the names of functions and classes that are there, for
tests use them. Use the standard library only.
"""
_TEST: Final = f"""\
#!/bin/bash
cp -R /tests/exercise/. .
timeout {_LIMIT_S:g} bash -e /tests/run.sh
{REWARD}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Language:
    """How exercises of a language are made ready and tested, in bash in their folder.

    `image` are lines of a Dockerfile before the files come. With `fetches`, tests fetch what an exercise names.
    """

    name: str
    image: str
    commands: str
    fetches: bool = False


#: By the ends of the names of test files.
_LANGUAGES: Final = {
    ".cpp": _Language(
        name="cpp",
        image="FROM buildpack-deps:jammy\n"
        "RUN apt-get update && apt-get install -y --no-install-recommends cmake libboost-all-dev libtbb-dev \\\n"
        "    && rm -rf /var/lib/apt/lists/*",
        commands='mkdir -p build\ncd build\ncmake -DEXERCISM_RUN_ALL_TESTS=1 -G "Unix Makefiles" ..\nmake',
    ),
    ".go": _Language(name="go", image="FROM golang:1.21", commands="go test ./..."),
    ".java": _Language(
        name="java",
        image="FROM eclipse-temurin:21-jdk",
        commands="find src/test -name '*.java' -exec sed -i -E 's/@Disabled\\([^)]*\\)//' {} +\n./gradlew test",
        fetches=True,
    ),
    ".js": _Language(
        name="javascript",
        image="FROM node:20\n"
        "RUN mkdir /npm-install && cd /npm-install && npm init -y && npm install jest@29 @babel/core@7.25.2 \\\n"
        "    @exercism/babel-preset-javascript@0.2.1 @exercism/eslint-config-javascript@0.6.0 @types/jest@29.5.12 \\\n"
        "    @types/node@20.12.12 babel-jest@29.6.4 core-js@3.37.1 eslint@8.49.0",
        commands="ln -sfn /npm-install/node_modules node_modules\nsed -i 's/\\bxtest(/test(/g' *.spec.js\nnpm run test",
    ),
    ".py": _Language(name="python", image="FROM python:3.11\nRUN pip install --no-cache-dir pytest", commands="pytest"),
    ".rs": _Language(name="rust", image="FROM rust:1", commands="cargo test -- --include-ignored", fetches=True),
}


def read_polyglot(place: Path) -> Iterator[ImportedScenario | UsageError]:
    """Read an exercise, a language's folder, or a folder of languages; what cannot be read is an error in its place.

    Raises UsageError.
    """
    for folder in find_folders(place, _CONFIG, "exercises/practice/*", "*/exercises/practice/*"):
        try:
            yield _scenario(folder)
        except UsageError as error:
            yield error


def _scenario(folder: Path) -> ImportedScenario:
    try:
        config = json.loads(read_text(folder / _CONFIG))
    except ValueError as error:
        raise UsageError(f"{folder / _CONFIG}: is no JSON: {error}.") from None
    values = config.get("files") if isinstance(config, dict) else None
    named = SourceRow(file=folder / _CONFIG, place="files", values=values if isinstance(values, dict) else {})
    solution, tests, examples = (_paths(named, key) for key in ("solution", "test", "example"))
    language = next((found for file in tests if (found := _LANGUAGES.get(PurePosixPath(file).suffix))), None)
    if language is None:
        known = ", ".join(each.name for each in _LANGUAGES.values())
        raise named.mistake("test", f"{', '.join(tests)}: no language of these: {known}")
    rest = files_below(folder, into="environment", without=(".meta", ".docs", ".git", *tests))
    docs = [read_text(file) for name in _DOCS if (file := folder / ".docs" / name).exists()]
    wanted = [file for file in solution if f"environment/{file}" in rest]
    return ImportedScenario(
        name=f"{language.name}_{folder.resolve().name}",
        statement="\n".join(docs) + _STATEMENT.format(files=", ".join(wanted)),
        files={
            **rest,
            # A build in C++ takes the exercise's name from its folder's.
            "environment/Dockerfile": f"{language.image}\nWORKDIR /app/{folder.resolve().name}\nCOPY . .\n",
            **{f"tests/exercise/{file}": folder / file for file in tests},
            "tests/run.sh": f"{language.commands}\n",
            "tests/test.sh": _TEST,
            **_solved(folder, examples, solution),
        },
        metadata={"category": language.name},
        allow_internet=language.fetches,
        verifier_timeout=_LIMIT_S + _SCORER_S,
        scoring_mode=ScoringMode.SEPARATE,
    )


def _paths(named: SourceRow, key: str) -> Sequence[str]:
    """Return the files of a part. Raises UsageError for one that is not there, or is outside."""
    paths = named.texts(key)
    if not paths:
        raise named.mistake(key, "is missing: a list of files was expected")
    folder = named.file.parent.parent
    for path in paths:
        if not (folder / path).is_file() or not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise named.mistake(key, f"{path} is no file of the exercise")
    return paths


def _solved(folder: Path, examples: Sequence[str], solution: Sequence[str]) -> Mapping[str, str | Path]:
    """Return solution/, which puts each example where it belongs: to its name, or else to the end of its name."""
    files = {f"solution/files/{_place(example, solution)}": folder / example for example in examples}
    if (folder / _EXAMPLES_CARGO).exists():
        files["solution/files/Cargo.toml"] = folder / _EXAMPLES_CARGO
    return {"solution/solve.sh": "#!/bin/bash\ncp -R /solution/files/. .\n", **files}


def _place(example: str, solution: Sequence[str]) -> str:
    path = PurePosixPath(example)
    for file in solution:
        if PurePosixPath(file).name == path.name:
            return file
    if path.suffix == ".java":  # a class that has no stub
        return str(PurePosixPath(solution[0]).with_name(path.name))
    return next((file for file in solution if PurePosixPath(file).suffix == path.suffix), solution[0])
