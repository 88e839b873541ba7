"""The folder of a sweep, and its manifest."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from subprocess import run
from sys import executable
from typing import Any
from uuid import UUID

import orjson
import pytest

from orchestrator.core.config import ArmConfig, SweepConfig, resolve
from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.plan import Plan
from orchestrator.core.protocol import Isolation
from orchestrator.core.records import ScenarioSummary
from orchestrator.rundir.files import JOURNAL, MANIFEST, locked
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.sweep_index import RunFolder, choose_folder, refuse_elsewhere

STARTED = re.compile(r"(.*)-\d{8}-\d{6}(-\d+)?")


@dataclass(frozen=True)
class Agent:
    digest: str


@dataclass(frozen=True)
class Arm:
    config: ArmConfig
    agent: Agent


@dataclass(frozen=True)
class Sweep:
    """A sweep as a command line asks for it; `choose` finds its folder."""

    config: SweepConfig
    plan: Plan
    arms: Mapping[str, Arm]

    def choose(self, runs: Path, *, endpoint: str | None = None, is_again: bool = False) -> RunFolder:
        return choose_folder(runs, self.config, self.plan, self.arms, endpoint=endpoint, is_again=is_again)


def sweep(
    *agents: dict[str, Any],
    digest: str = "d1",
    benchmark: str = "bugs",
    contents: str = "12",
    trials: int = 1,
    **settings: Any,
) -> Sweep:
    """Two scenarios, `one` and `two`, whose contents have these digests."""
    arms = [*agents] or [{"agent": "oracle"}]
    config = resolve({"benchmark": benchmark, "arms": arms, "trials": trials} | settings)
    scenarios = tuple(
        ScenarioSummary(id=f"scn_{name}", name=name, digest=content)
        for name, content in zip(("one", "two"), contents, strict=True)
    )
    plan = Plan(benchmark=benchmark, scenarios=scenarios, arms=tuple(arm.name for arm in config.arms), trials=trials)
    return Sweep(config=config, plan=plan, arms={arm.name: Arm(arm, Agent(digest)) for arm in config.arms})


def written(folder: Path) -> dict[str, Any]:
    """The manifest as it is in the file."""
    manifest: dict[str, Any] = orjson.loads((folder / MANIFEST).read_bytes())
    return manifest


def finish(folder: RunFolder, trials: int = 2) -> None:
    ended = b'{"event":"sweep.ended","reason":"finished"}\n'
    (folder.path / JOURNAL).write_bytes(b'{"event":"trial.finished"}\n' * trials + ended)


def test_a_new_sweep_is_named_for_benchmark_arm_and_time_and_has_an_id_of_its_own(tmp_path: Path) -> None:
    chosen = sweep().choose(tmp_path / "runs")
    match = STARTED.fullmatch(chosen.path.name)
    assert match is not None
    assert match[1] == "bugs-oracle"
    assert (UUID(chosen.sweep).version, chosen.is_resumed) == (7, False)


def test_several_arms_are_counted_and_strange_names_made_safe(tmp_path: Path) -> None:
    names = [
        sweep({"agent": "oracle"}, {"agent": "nop"}).choose(tmp_path).path.name,
        sweep({"agent": "oracle", "model": "openai/gpt 5"}).choose(tmp_path).path.name,
        sweep(benchmark="../.secret/x").choose(tmp_path).path.name,
        sweep(benchmark="b" * 500).choose(tmp_path).path.name,
    ]
    stems = [match[1] for name in names if (match := STARTED.fullmatch(name))]
    assert stems == ["bugs-2-arms", "bugs-oracle+openai-gpt-5", "secret-x-oracle", "b" * 150]


def test_a_taken_name_is_numbered(tmp_path: Path) -> None:
    chosen = []
    for _ in range(3):
        chosen.append(sweep().choose(tmp_path))
        finish(chosen[-1])
    assert len({folder.path for folder in chosen}) == len({folder.sweep for folder in chosen}) == 3


def test_the_newest_unfinished_sweep_of_the_same_kind_is_resumed(tmp_path: Path) -> None:
    older, newer = sweep(name="older").choose(tmp_path), sweep(name="newer").choose(tmp_path)
    os.utime(older.path / MANIFEST, (1, 1))
    assert sweep().choose(tmp_path) == RunFolder(path=newer.path, sweep=newer.sweep, is_resumed=True)
    finish(newer)
    assert sweep().choose(tmp_path).path == older.path


def test_a_finished_sweep_is_not_resumed_unless_it_is_named(tmp_path: Path) -> None:
    first = sweep().choose(tmp_path)
    finish(first)
    assert sweep().choose(tmp_path).path != first.path
    assert sweep(name=first.path.name).choose(tmp_path).sweep == first.sweep


def test_an_unfinished_sweep_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    first = sweep().choose(tmp_path)
    others = [
        sweep({"agent": "nop"}),
        sweep({"agent": "oracle", "model": "m"}),
        sweep({"agent": "oracle", "settings": {"x": 1}}),
        sweep(digest="d2"),
        sweep(benchmark="other"),
        sweep(on_agent_failure="fail"),
    ]
    assert [other.choose(tmp_path).is_resumed for other in others] == [False] * len(others)
    assert sweep().choose(tmp_path).path == first.path


def test_limits_rates_and_trials_may_differ_from_day_to_day(tmp_path: Path) -> None:
    first = sweep(name="n").choose(tmp_path)
    again = sweep(name="n", trials=5, devboxes=50, rate=3.0, attempts=9, timeouts={"solve": 5}).choose(tmp_path)
    assert (again.sweep, again.is_resumed) == (first.sweep, True)
    manifest = read_manifest(first.path)
    assert (manifest.trials, manifest.config["devboxes"]) == (10, 50)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (sweep(digest="d" * 64, name="n"), r"arms\.oracle\.digest has changed"),
        (sweep({"agent": "nop", "name": "oracle"}, name="n"), r'arms\.oracle\.agent was "oracle" and is now "nop"'),
        (
            sweep({"agent": "oracle", "name": "oracle", "model": "m"}, name="n"),
            r'arms\.oracle\.model was null and is now "m"',
        ),
        (
            sweep({"agent": "oracle", "settings": {"a": {"b": 2}}}, name="n"),
            r'arms\.oracle\.settings\.a was null and is now {"b":2}',
        ),
        (sweep({"agent": "nop"}, name="n"), r"arms\.nop has changed; arms\.oracle has changed"),
        (sweep(benchmark="other", name="n"), r'benchmark was "bugs" and is now "other"'),
        (
            sweep(on_agent_failure="fail", digest="d" * 64, name="n"),
            r'arms\.oracle\.digest has changed; on_agent_failure was "score" and is now "fail"',
        ),
        (
            sweep(isolation="none", name="n"),
            r"endpoint was .*--isolation local.* and is now .*--isolation none",
        ),
        (sweep(contents="13", name="n"), "the content of two has changed"),
        (sweep(contents="34", name="n"), "the content of one, two has changed"),
    ],
)
def test_a_named_sweep_of_another_kind_is_refused_with_every_difference(
    tmp_path: Path, other: Sweep, words: str
) -> None:
    first = sweep(name="n").choose(tmp_path)
    before = (first.path / MANIFEST).read_bytes()
    with pytest.raises(UsageError, match=f"n has results of another kind: {words}.*. Give another --name"):
        other.choose(tmp_path)
    assert (first.path / MANIFEST).read_bytes() == before


def test_changed_scenarios_are_refused_without_a_name_too(tmp_path: Path) -> None:
    sweep().choose(tmp_path)
    with pytest.raises(UsageError, match="the content of one has changed"):
        sweep(contents="92").choose(tmp_path)


def test_scenarios_that_a_later_selection_adds_are_remembered_too(tmp_path: Path) -> None:
    whole = sweep(name="n")
    part = Sweep(
        config=whole.config,
        arms=whole.arms,
        plan=Plan(benchmark="bugs", scenarios=whole.plan.scenarios[:1], arms=("oracle",), trials=1),
    )
    part.choose(tmp_path)
    whole.choose(tmp_path)
    part.choose(tmp_path)
    with pytest.raises(UsageError, match="the content of two has changed"):
        sweep(name="n", contents="19").choose(tmp_path)


def test_settings_that_json_writes_in_its_own_way_are_still_the_same(tmp_path: Path) -> None:
    """A date of a TOML file comes back from the manifest as a text."""
    arm = {"agent": "oracle", "settings": {"since": date(2026, 1, 2), "ratio": 0.1, "deep": [{"x": (1, 2)}]}}
    first = sweep(arm, name="n").choose(tmp_path)
    assert sweep(arm, name="n").choose(tmp_path).sweep == sweep(arm).choose(tmp_path).sweep == first.sweep


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp", "-x", ".hidden", "a b", "a\n", "ä", "x" * 300])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"use letters, digits|cannot be made"):
        sweep(name=name).choose(tmp_path / "runs")
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_runs_that_cannot_be_a_folder_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UsageError, match="the run folder cannot be made"):
        sweep(name="n").choose(tmp_path / "runs")


def test_a_sweep_that_is_running_is_left_alone(tmp_path: Path) -> None:
    first = sweep(name="n").choose(tmp_path)
    before = (first.path / MANIFEST).read_bytes()
    with locked(first.path), pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        sweep(trials=9).choose(tmp_path)
    assert (first.path / MANIFEST).read_bytes() == before


def test_a_damaged_manifest_is_named_and_does_not_hide_the_others(tmp_path: Path) -> None:
    first = sweep(name="good").choose(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / MANIFEST).write_bytes(b'{"sweep"')
    assert sweep().choose(tmp_path).path == first.path
    with pytest.raises(JournalError, match=r"manifest\.json is damaged"):
        sweep(name="bad").choose(tmp_path)


def test_a_sweep_of_a_later_version_is_refused_with_the_version(tmp_path: Path) -> None:
    first = sweep(name="n").choose(tmp_path)
    manifest = written(first.path) | {"schema": 99, "version": "7.1"}
    (first.path / MANIFEST).write_bytes(orjson.dumps(manifest))
    with pytest.raises(UsageError, match=r"written by sweep 7\.1"):
        sweep(name="n").choose(tmp_path)


def test_the_manifest_says_what_the_sweep_is(tmp_path: Path) -> None:
    chosen = sweep(name="n").choose(tmp_path)
    manifest = written(chosen.path)
    assert manifest["sweep"] == chosen.sweep
    assert manifest["endpoint"] == "embedded"
    assert manifest["identity"]["arms"]["oracle"]["digest"] == "d1"
    assert manifest["scenarios"]["scn_two"] | {"name": "two", "digest": "2"} == manifest["scenarios"]["scn_two"]
    assert manifest["started_in"] == str(Path.cwd())
    assert {"schema", "version", "python", "git_commit", "created", "name", "trials", "config"} <= manifest.keys()


def test_a_full_disk_leaves_the_old_manifest_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"old")
    script = (
        "import resource, sys; from pathlib import Path; from orchestrator.rundir.files import write_atomically;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "write_atomically(Path(sys.argv[1]), b'x' * 1000)"
    )
    ended = run([executable, "-c", script, tmp_path / MANIFEST], capture_output=True, text=True, check=False)
    assert "File too large" in ended.stderr
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(MANIFEST, b"old")]


def test_a_named_sweep_is_not_resumed_elsewhere_and_both_places_are_named(tmp_path: Path) -> None:
    """Its devboxes and results are where it began; a slash at the end is no other place."""
    there, here = "http://there:1", "http://here:2"
    first = sweep(name="n").choose(tmp_path, endpoint=there)
    before = (first.path / MANIFEST).read_bytes()
    for endpoint in (here, None):
        with pytest.raises(
            UsageError, match=rf"endpoint was \"{there}\" and is now \"({here}|the embedded service .*)\""
        ):
            sweep(name="n").choose(tmp_path, endpoint=endpoint)
    with pytest.raises(UsageError, match=f"n runs on {there}, and this would go on with it on {here}"):
        refuse_elsewhere(first.path, here, Isolation.LOCAL)
    assert (first.path / MANIFEST).read_bytes() == before
    refuse_elsewhere(first.path, f"{there}/", Isolation.NONE)
    refuse_elsewhere(tmp_path / "new", here, Isolation.LOCAL)
    assert sweep(name="n").choose(tmp_path, endpoint=f"{there}/").sweep == first.sweep


def test_without_a_name_a_sweep_elsewhere_is_left_alone(tmp_path: Path) -> None:
    first = sweep().choose(tmp_path, endpoint="http://there:1")
    others = [
        sweep().choose(tmp_path, endpoint="http://here:2"),
        sweep().choose(tmp_path),
        sweep(isolation="none").choose(tmp_path),
    ]
    assert len({folder.sweep for folder in (first, *others)}) == 4
    assert sweep().choose(tmp_path, endpoint="http://there:1").sweep == first.sweep


def test_the_network_setting_is_part_of_a_sweeps_identity(tmp_path: Path) -> None:
    """Older folders say nothing of it: they had what agents and scenarios name."""
    first = sweep(name="n").choose(tmp_path)
    manifest = written(first.path)
    del manifest["identity"]["network"]
    (first.path / MANIFEST).write_bytes(orjson.dumps(manifest))
    assert sweep().choose(tmp_path).sweep == first.sweep
    with pytest.raises(UsageError, match=r'network was "agent" and is now "host"'):
        sweep(name="n", network="host").choose(tmp_path)


def test_trials_to_run_again_are_looked_for_in_finished_sweeps_too(tmp_path: Path) -> None:
    first = sweep(name="n").choose(tmp_path)
    finish(first)
    assert sweep().choose(tmp_path, is_again=True).sweep == first.sweep


def test_a_sweep_whose_process_had_something_left_to_do_is_not_finished(tmp_path: Path) -> None:
    """All results are there, and a devbox may be, too."""
    first = sweep(name="n").choose(tmp_path)
    finish(first)
    with (first.path / JOURNAL).open("ab") as journal:
        journal.write(b'{"event":"sweep.opened"}\n')
    assert sweep().choose(tmp_path).sweep == first.sweep


def test_all_of_a_configuration_comes_back_from_the_manifest(tmp_path: Path) -> None:
    whole = sweep(
        {"agent": "a", "name": "x", "model": "m", "settings": {"deep": [1, {"y": None}]}},
        {"agent": "b"},
        name="n",
        trials=3,
        include=["o*"],
        exclude=["z"],
        limit=2,
        skip_unsupported=True,
        devboxes=5,
        agents=2,
        rate=3.5,
        attempts=4,
        scorings=2,
        on_agent_failure="fail",
        scoring="shared",
        timeouts={"solve": 7, "score": 9},
        deadline="07:00",
        max_cost=2.5,
        max_devbox_hours=8,
        max_failures=6,
        drain=0,
        same_failures=3,
        unreachable=60,
        endpoint="http://there:1",
        network="host",
        isolation="none",
        lock="none",
        python="some/python",
        registry_mirror=["docker.io=http://127.0.0.1:5000"],
        image_cache="60GB",
        registry=["mine.json"],
        rebuild=True,
        disk_limit="hard",
        accept=0.9,
        fail_under=0.5,
        notify=["true"],
    )
    assert whole.config.model_fields_set == type(whole.config).model_fields.keys()
    folder = whole.choose(tmp_path, endpoint="http://there:1")
    kept = whole.config.model_copy(update={"notify": ()})  # whom to tell is a secret
    assert resolve(read_manifest(folder.path).config) == kept


def test_the_plan_comes_back_from_the_manifest(tmp_path: Path) -> None:
    """That of the last time, though the manifest remembers every scenario there ever was."""
    whole = sweep(name="n", trials=2)
    whole.choose(tmp_path)
    part = Sweep(
        config=whole.config,
        arms=whole.arms,
        plan=Plan(benchmark="bugs", scenarios=whole.plan.scenarios[1:], arms=("oracle",), trials=2),
    )
    folder = part.choose(tmp_path)
    manifest = read_manifest(folder.path)
    assert manifest.plan == part.plan
    assert len(manifest.scenarios) == 2


def test_a_new_run_folder_is_its_owners_and_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    for name in ("new", "old"):
        sweep(name=name).choose(tmp_path)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")] == [0o700, 0o755]


def part_of(whole: Sweep, count: int = 1) -> Sweep:
    """The same with the first scenarios only, as `--limit` asks for it."""
    config = whole.config.model_copy(update={"limit": count})
    return replace(whole, config=config, plan=replace(whole.plan, scenarios=whole.plan.scenarios[:count]))


def test_without_a_name_no_sweep_is_made_smaller_and_why_another_begins_is_said(tmp_path: Path) -> None:
    first = sweep(trials=3).choose(tmp_path)
    before = (first.path / MANIFEST).read_bytes()
    fewer = sweep(trials=1).choose(tmp_path)
    finish(fewer)
    part = part_of(sweep(trials=3)).choose(tmp_path)
    assert len({first.sweep, fewer.sweep, part.sweep}) == 3
    assert not part.is_resumed
    assert not fewer.is_resumed
    assert part.why == (
        f"New sweep: {first.path.name} has 3 trials that this plan does not have "
        f"(--limit was not given, is 1). To continue {first.path.name}: sweep resume {first.path}"
    )
    assert "has 4 trials that this plan does not have (--trials was 3, is 1)" in fewer.why
    assert (first.path / MANIFEST).read_bytes() == before


def test_the_reason_for_a_new_sweep_names_globs_and_a_benchmark_that_shrank(tmp_path: Path) -> None:
    whole = sweep(exclude=["z*"])
    first = whole.choose(tmp_path)
    other = sweep(include=["o*", "x"])
    chosen = replace(other, plan=part_of(other).plan).choose(tmp_path)
    assert "(--include was not given, is o* x; --exclude was z*, is not given)" in chosen.why
    finish(chosen)
    shrunk = replace(whole, plan=part_of(whole).plan)
    assert f"{first.path.name} has 1 trial that this plan does not have. To continue" in shrunk.choose(tmp_path).why


def test_the_same_or_a_larger_plan_resumes_without_a_message(tmp_path: Path) -> None:
    first = part_of(sweep()).choose(tmp_path)
    for wanted in (part_of(sweep()), sweep(), sweep(trials=3), sweep(trials=3)):
        chosen = wanted.choose(tmp_path)
        assert (chosen.sweep, chosen.is_resumed, chosen.why) == (first.sweep, True, "")


def test_a_sweep_of_the_same_size_is_resumed_whichever_is_newer(tmp_path: Path) -> None:
    small = part_of(sweep(name="small")).choose(tmp_path)
    large = sweep(name="large").choose(tmp_path)
    for newer, older in ((large, small), (small, large)):
        os.utime(newer.path / MANIFEST, (2, 2))
        os.utime(older.path / MANIFEST, (1, 1))
        assert part_of(sweep()).choose(tmp_path).path == small.path
        os.utime(newer.path / MANIFEST, (2, 2))
        os.utime(older.path / MANIFEST, (1, 1))
        assert sweep().choose(tmp_path).path == large.path


def test_by_name_a_sweep_is_made_smaller_as_ever(tmp_path: Path) -> None:
    first = sweep(name="n", trials=3).choose(tmp_path)
    chosen = part_of(sweep(name="n")).choose(tmp_path)
    assert (chosen.sweep, chosen.is_resumed, chosen.why) == (first.sweep, True, "")


def test_an_older_manifest_with_few_keys_is_read_and_a_later_ones_keys_stay(tmp_path: Path) -> None:
    first = sweep(name="n").choose(tmp_path)
    older = {
        key: value for key, value in written(first.path).items() if key not in {"selected", "started_in", "python"}
    }
    (first.path / MANIFEST).write_bytes(orjson.dumps(older | {"later": [1]}))
    assert (read_manifest(first.path).plan, read_manifest(first.path).started_in) == (sweep().plan, ".")
    assert sweep(name="n").choose(tmp_path).sweep == first.sweep
    assert written(first.path)["later"] == [1]


@pytest.mark.parametrize("damage", [{"sweep": 1}, {"scenarios": [1]}, {"scenarios": {"a": {}}}, {"config": None}])
def test_a_manifest_with_a_value_of_another_type_is_damaged(tmp_path: Path, damage: dict[str, Any]) -> None:
    first = sweep(name="n").choose(tmp_path)
    (first.path / MANIFEST).write_bytes(orjson.dumps(written(first.path) | damage))
    with pytest.raises(JournalError, match=r"manifest\.json is damaged"):
        read_manifest(first.path)
