"""The results of a sweep as a job of Harbor, which Harbor's viewer opens.

Source of the records: `JobConfig`, `JobResult`, `TrialConfig`, `TrialResult` and `TrialPaths` of harbor 0.26.0. Keys
that we know nothing of are left out, which gives them Harbor's defaults.

    config.json result.json        the job
    <scenario>__<digits>/          a trial
      config.json result.json
      agent/                       trajectory.json, what the agent kept itself, and its output
      verifier/                    what the tests left in /logs/verifier, and the scorers' output
      artifacts/                   patch.diff, changes.txt, and the artifacts that the agent's file names
      trial.log exception.txt      the devbox's log; the failure, or how an agent ended that was scored all the same
      steps/<name>/                of a scenario of several steps: agent/, verifier/ and artifacts/ of each
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, Final
from uuid import UUID, uuid5

import orjson

from orchestrator.core.records import Flag, path_part
from orchestrator.rundir.manifest import Manifest, read_manifest
from orchestrator.rundir.results_file import Row

#: Harbor's names for the ends of an agent that is scored all the same.
_EXCEPTIONS: Final = {
    Flag.AGENT_TIMED_OUT: "AgentTimeoutError",
    Flag.AGENT_CRASHED: "NonZeroAgentExitCodeError",
}
#: Harbor's phases, and the stages that they are.
_PHASES: Final = {
    "environment_setup": "boot",
    "agent_setup": "prepare",
    "agent_execution": "solve",
    "verifier": "score",
}
#: Where a class of Harbor's would stand: without it Harbor takes the environment for Docker's.
_ENVIRONMENT: Final = {"import_path": "sweep"}
#: The places of an attempt's files in a trial, by their labels in the result.
_PLACES: Final = {
    "agent_log": "agent/command-0/stdout.txt",  # which the viewer shows
    "trajectory_atif": "agent/trajectory.json",
    "trajectory": "agent/trajectory",
    "traces": "agent/traces",
    "verifier": "verifier",
    "patch": "artifacts/patch.diff",
    "changes": "artifacts/changes.txt",
    "artifacts": "artifacts",
    "devbox_log": "trial.log",
}


def write_job(rows: Sequence[Row], run: Path, job: Path) -> None:
    """Write a job of the results of a run folder into an empty folder. Raises JournalError and OSError."""
    manifest = read_manifest(run)
    arms = {(row["agent"], row["model"], row["arm"]) for row in rows}
    alike = Counter((agent, model) for agent, model, _ in arms)
    names = {arm: agent if alike[agent, model] == 1 else arm for agent, model, arm in arms}
    trials = {trial_name(row): _trial(row, names[row["arm"]], manifest, run) for row in rows}
    for row, (name, result) in zip(rows, trials.items(), strict=True):
        folder = job / name
        folder.mkdir()
        for part in row.get("steps") or [row]:
            _copy_files(part, run, folder)
        _write_json(folder / "config.json", result["config"])
        _write_json(folder / "result.json", result)
        if exceptions := _exceptions(result):
            told = dict.fromkeys(each["exception_message"] for each in exceptions)
            (folder / "exception.txt").write_text("\n".join(told), "utf-8")
    settings = manifest.config
    _write_json(
        job / "config.json",
        {
            "job_name": manifest.name,
            "n_attempts": settings["trials"],
            "n_concurrent_trials": settings["devboxes"],
            "retry": {"max_retries": settings["attempts"] - 1},
            "environment": _ENVIRONMENT,
            "agents": _each_once(trial["config"]["agent"] for trial in trials.values()),
            "datasets": [{"path": manifest.origin["name"] if manifest.origin else settings["benchmark"]}],
        },
    )
    _write_json(
        job / "result.json",
        {
            "id": manifest.sweep,
            "started_at": min(row["started"] for row in rows),
            "finished_at": max(row["finished"] for row in rows),
            "n_total_trials": len(rows),
            "stats": _stats(rows, trials),
        },
    )


def trial_name(row: Row) -> str:
    """The name of a trial's folder, in Harbor's form: the scenario's name, and digits that are the trial's."""
    digits = sha256(_key(row).encode()).hexdigest()[:12]
    return f"{path_part(row['scenario_name'])[:-9][:32].rstrip('_-')}__{digits}"


def _key(row: Row) -> str:
    return f"{row['scenario']}/{row['arm']}/{row['trial']}"


def _trial(row: Row, agent: str, manifest: Manifest, run: Path) -> dict[str, Any]:
    """A trial's result, with its configuration in it; `agent` is the name under which Harbor counts it."""
    task = _task(row["scenario_name"], manifest)
    name = trial_name(row)
    provider, _, model = (row["model"] or "").rpartition("/")
    scenario = manifest.scenarios.get(row["scenario"])
    return {
        "id": str(uuid5(UUID(manifest.sweep), _key(row))),
        "task_name": row["scenario_name"],
        "trial_name": name,
        "trial_uri": (run / next(iter(row["files"].values()), "trials")).parent.absolute().as_uri(),
        "task_id": task,
        "source": row["benchmark"],
        "task_checksum": scenario.digest if scenario else "",
        "config": {
            "task": {**task, "source": row["benchmark"]},
            "trial_name": name,
            "agent": {
                "name": agent,
                "model_name": row["model"],
                "kwargs": manifest.identity["arms"].get(row["arm"], {}).get("settings", {}),
            },
            "environment": _ENVIRONMENT,
            "job_id": manifest.sweep,
        },
        "agent_info": {
            "name": agent,
            "version": row["version"] or "unknown",
            "model_info": {"name": model, "provider": provider or None} if model else None,
        },
        "started_at": row["started"],
        "finished_at": row["finished"],
        **_judged(row),
    }


def _judged(row: Row) -> dict[str, Any]:
    """What became of a trial; of one of several steps Harbor has most of it in each step."""
    steps = row.get("steps")
    verdict = {"verifier_result": _verdict(row)}
    if not steps:
        mode = row["scoring"] if row["scoring"] in {"shared", "separate"} else None
        how = {"verifier_environment_mode": mode, "exception_info": _exception(row, row["failure"])}
        return {"agent_result": _usage(row, row), **verdict, **how, **_phases([row], row["finished"])[0]}
    phases = _phases(steps, row["finished"])
    begun = {name: each for name, each in phases[0].items() if name in {"environment_setup", "agent_setup"}}
    failure = _exception({"flags": [], "finished": row["finished"]}, row["failure"])
    results = [
        {
            "step_name": step["name"],
            "agent_result": _usage(step, row),
            "verifier_result": _verdict(step),
            "exception_info": _exception({**step, "finished": row["finished"]}, None),
            **{name: phase[name] for name in ("agent_execution", "verifier") if name in phase},
        }
        for step, phase in zip(steps, phases, strict=True)
    ]
    return {**verdict, **begun, "exception_info": failure, "step_results": results}


def _usage(part: Row, row: Row) -> dict[str, Any]:
    """What an agent used, in a trial or in a step of it."""
    usage = part["usage"]
    return {
        "n_input_tokens": usage.get("input_tokens"),
        "n_cache_tokens": usage.get("cached_tokens"),
        "n_output_tokens": usage.get("output_tokens"),
        "cost_usd": usage.get("cost_usd"),
        "metadata": {"arm": row["arm"], "trial": row["trial"], "flags": part["flags"], "turns": usage.get("turns")},
    }


def _verdict(part: Row) -> dict[str, Any] | None:
    return None if part["score"] is None else {"rewards": {**part["rewards"], "reward": part["score"]}}


def _task(scenario: str, manifest: Manifest) -> dict[str, Any]:
    """Where the scenario's folder is: in a repository at a commit, or below the benchmark's folder."""
    for part in (manifest.origin or {}).get("parts", ()):
        folders = part["folders"]
        if scenario in folders or "" in folders:
            place = folders.get(scenario) or f"{folders['']}/{scenario}".lstrip("/")
            return {"git_url": part["url"], "git_commit_id": part["commit"], "path": place}
    return {"path": f"{manifest.config['benchmark']}/{scenario}"}


def _exception(part: Row, failure: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The failure, or how an agent ended that was scored all the same."""
    kind, message = None, ""
    if failure:
        kind, message = failure["class"], failure["message"]
    elif flag := next((each for each in _EXCEPTIONS if each in part["flags"]), None):
        kind, message = _EXCEPTIONS[flag], flag.meaning
    if kind is None:
        return None
    facts = {"exception_type": kind, "exception_message": message, "exception_traceback": ""}
    return {**facts, "occurred_at": part["finished"]}


def _exceptions(trial: Mapping[str, Any]) -> list[dict[str, str]]:
    """Those of a trial's result, and of its steps."""
    found = [part["exception_info"] for part in (trial, *trial.get("step_results", ()))]
    return [each for each in found if each]


def _phases(parts: Sequence[Row], finished: str) -> list[dict[str, Any]]:
    """When each phase of each part began and ended: a stage took so long, and the next followed, to the end."""
    phases = {stage: phase for phase, stage in _PHASES.items()}
    ended = datetime.fromisoformat(finished)
    found: list[dict[str, Any]] = []
    for part in reversed(parts):
        times = {}
        for stage, spent in reversed(part["stages"].items()):
            began = ended - timedelta(seconds=spent["seconds"])
            if stage in phases:
                moments = (each.isoformat(timespec="milliseconds") for each in (began, ended))
                times[phases[stage]] = dict(zip(("started_at", "finished_at"), moments, strict=True))
            ended = began - timedelta(seconds=spent["waited"])
        found.insert(0, times)
    return found


def _stats(rows: Sequence[Row], trials: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    evals: dict[str, Any] = {}
    for name, each in trials.items():
        model = (each["agent_info"]["model_info"] or {}).get("name")
        key = "__".join(filter(None, (each["agent_info"]["name"], model, each["source"])))
        ours = evals.setdefault(key, {"n_trials": 0, "n_errors": 0, "reward_stats": {}, "exception_stats": {}})
        if each["verifier_result"]:
            ours["n_trials"] += 1
            for reward, value in each["verifier_result"]["rewards"].items():
                ours["reward_stats"].setdefault(reward, {}).setdefault(str(value), []).append(name)
        kinds = sorted({exception["exception_type"] for exception in _exceptions(each)})
        ours["n_errors"] += bool(kinds)
        for kind in kinds:
            ours["exception_stats"].setdefault(kind, []).append(name)
    for each in evals.values():
        scores = [float(value) for value, names in each["reward_stats"].get("reward", {}).items() for _ in names]
        each["metrics"] = [{"mean": fmean(scores)}] if scores else []
    used = [row["usage"] for row in rows]
    return {
        "n_completed_trials": len(rows),
        "n_errored_trials": sum(each["n_errors"] for each in evals.values()),
        "n_retries": sum(max(0, len(row["attempts"]) - 1) for row in rows),
        "evals": evals,
        "n_input_tokens": _total(used, "input_tokens"),
        "n_cache_tokens": _total(used, "cached_tokens"),
        "n_output_tokens": _total(used, "output_tokens"),
        "cost_usd": _total(used, "cost_usd"),
    }


def _total(used: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [each[name] for each in used if each.get(name) is not None]
    return sum(known) if known else None


def _each_once(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({orjson.dumps(each): each for each in values}.values())


def _copy_files(part: Row, run: Path, trial: Path) -> None:
    """Copy the files of an attempt, or of a step of it, to their places; those that somebody removed are left out.

    A devbox has one log for all steps, of which each step has what there was at its end.
    """
    folder = trial / "steps" / part["name"] if "name" in part else trial
    for name in ("agent", "verifier", "artifacts"):
        (folder / name).mkdir(parents=True)
    for label, file in part["files"].items():
        place = _PLACES.get(label) or (f"verifier/scorers/{Path(file).name}" if label.startswith("scorer_") else "")
        found, target = run / file, (trial if label == "devbox_log" else folder) / place
        if not place or not found.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copyfile(found, target)


def _write_json(path: Path, value: object) -> None:
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))
