"""SWE-bench and the sets that have its columns: an issue of a repository, and the tests of the commit that closed it.

How an instance is evaluated is for the package `swebench` to say, and nothing of it is here. An import has it make the
script of the evaluation, and the scenario's scorer has the same version judge what the script printed. From version 5
on, rows bring image, script and log parser with them; before, the package knows them by repository and version.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import ScoringMode
from orchestrator.service.definitions.importers import swe_bench_judge
from orchestrator.service.definitions.importers.rows import SourceRow, read_rows
from orchestrator.service.definitions.importers.scenario_folder import ImportedScenario

#: Columns that rows have from version 5 on.
_BROUGHT: Final = ("image", "eval_script", "log_parser", "eval_type")
#: What swebench judges by, of one version or the other.
_JUDGED_BY: Final = ("instance_id", "repo", "version", "FAIL_TO_PASS", "PASS_TO_PASS", "log_parser", "eval_type")
#: The namespace of the images that are published.
_NAMESPACE: Final = "swebench"
_TESTBED: Final = "/testbed"
_SOLVE: Final = """\
#!/bin/bash
git apply --verbose --whitespace=nowarn /solution/gold.patch ||
    patch --batch --fuzz=5 -p1 -i /solution/gold.patch
"""
#: Seconds: of an agent, and of a scorer beside the evaluation itself.
_AGENT_S: Final = 3600.0
_JUDGING_S: Final = 300.0


def read_swebench(file: Path) -> Iterator[ImportedScenario | UsageError]:
    """Read the published columns; a row that cannot be evaluated is an error in its place. Raises UsageError.

    An instance's hints are not given to anybody.
    """
    try:
        import swebench.harness.grading  # noqa: F401 - all that it needs
    except ModuleNotFoundError as error:
        why = f"there is no module {error.name}: pip install 'sweep-orchestrator[swebench]'"
        raise UsageError(f"SWE-bench is imported with the package swebench, and {why}.") from None
    for row in read_rows(file):
        try:
            yield _scenario(row)
        except UsageError as error:
            yield error


def _scenario(row: SourceRow) -> ImportedScenario:
    statement, pictures = f"{row.text('problem_statement')}\n", _pictures(row)
    if unnamed := [url for url in pictures if url not in statement]:
        statement += "\n".join(("\nPictures:\n", *unnamed, ""))
    specification = _specification(row)
    instance = {key: getattr(specification, key) for key in _JUDGED_BY if hasattr(specification, key)}
    literal = json.dumps({**instance, "eval_script": specification.eval_script}, ensure_ascii=False, indent=1)
    image = getattr(specification, "image", None) or specification.instance_image_key  # before version 5
    judge = Path(swe_bench_judge.__file__).read_text(encoding="utf-8")
    return ImportedScenario(
        name=row.text("instance_id"),
        statement=statement,
        note="the statement has pictures, of which agents get the addresses" if pictures else "",
        files={
            "tests/evaluate.py": f"{judge}\n\nmain({literal})\n",
            "tests/requirements.txt": f"swebench=={version('swebench')}\n",
            "solution/solve.sh": _SOLVE,
            "solution/gold.patch": row.text("patch"),
        },
        metadata={"category": row.text("repo"), "base_commit": row.text("base_commit")},
        environment={"docker_image": image, "workdir": _TESTBED, "memory_mb": 4096},
        allow_internet=True,  # as evaluations have it: some install the repository again
        agent_timeout=_AGENT_S,
        verifier_timeout=swe_bench_judge.LIMIT_S + _JUDGING_S,
        scoring_mode=ScoringMode.SEPARATE,
        scorers=[
            {
                "name": "swebench",
                "type": "python_script_scorer",
                "python_script": "evaluate.py",
                "requirements": "requirements.txt",
            }
        ],
    )


def _pictures(row: SourceRow) -> Sequence[str]:
    """Return the addresses of the pictures of an issue, as Multimodal has them. Raises UsageError."""
    assets = row.values.get("image_assets") or {}
    try:
        found = (json.loads(assets) if isinstance(assets, str) else assets).get("problem_statement") or []
    except (ValueError, AttributeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise row.mistake("image_assets", "a table, whose problem_statement is a list of addresses, was expected")
    return found


def _specification(row: SourceRow) -> Any:
    """Return swebench's record of how an instance is evaluated. Raises UsageError."""
    instance = dict(row.values) | {key: row.texts(key) for key in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    instance |= {key: row.text(key) for key in ("instance_id", "repo", "base_commit", "version", "test_patch")}
    if not instance["FAIL_TO_PASS"]:
        raise row.mistake("FAIL_TO_PASS", "is missing: without it no patch can be judged")
    try:
        from swebench.harness.log_parsers import PARSER_REGISTRY
        from swebench.harness.utils import make_test_spec
    except ImportError:
        return _specification_before_5(row, instance)
    if missing := [key for key in _BROUGHT if not instance.get(key)]:
        why = f"missing, and swebench {version('swebench')} knows of an evaluation by them only"
        raise row.mistake(", ".join(missing), f"{why}: take a newer publication, or pip install 'swebench>=4.1,<5'")
    if (parser := instance["log_parser"]) not in PARSER_REGISTRY:
        raise row.mistake("log_parser", f"swebench {version('swebench')} has none called {parser!r}")
    specification = make_test_spec(instance)
    if any(specification.image_assets.get(key) for key in ("test_patch", "patch")):
        raise row.mistake("image_assets", "its tests need files that are no part of a patch: leave the instance out")
    return specification


def _specification_before_5(row: SourceRow, instance: dict[str, Any]) -> Any:
    """As `_specification`, without the scripts that images were made by, for which it would ask GitHub."""
    from swebench.harness.constants import MAP_REPO_VERSION_TO_SPECS
    from swebench.harness.test_spec.create_scripts import make_eval_script_list
    from swebench.harness.test_spec.test_spec import TestSpec

    repo, release = instance["repo"], instance["version"]
    if (settings := MAP_REPO_VERSION_TO_SPECS.get(repo, {}).get(release)) is None:
        raise row.mistake("version", f"swebench {version('swebench')} does not know {release} of {repo}")
    commands = make_eval_script_list(
        instance, settings, "testbed", _TESTBED, instance["base_commit"], instance["test_patch"]
    )
    return TestSpec(
        instance_id=instance["instance_id"],
        repo=repo,
        version=release,
        repo_script_list=[],
        eval_script_list=commands,
        env_script_list=[],
        arch="x86_64",
        FAIL_TO_PASS=instance["FAIL_TO_PASS"],
        PASS_TO_PASS=instance["PASS_TO_PASS"],
        language="",
        docker_specs={},
        namespace=_NAMESPACE,
    )
