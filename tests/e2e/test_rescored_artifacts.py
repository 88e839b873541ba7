"""What crossed to separate scorers is kept as it is, and crosses again; what cannot be kept or put back is named."""

import io
import tarfile
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.images.base_images import base_image
from tests.images.packing import PackedImage
from tests.waiting import wait_until

from .conftest import CLOSED, PATIENCE, reward, write_scenario
from .test_rescore import only
from .test_steps import steps, write_steps

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Desk

needs_walls: Final = pytest.mark.usefixtures("walls")
#: A hook that finds what a devbox without the agent has not.
COLLECT: Final = '[[verifier.collect]]\ncommand = "cat /tmp/state >/logs/artifacts/dump"\n'
ARTIFACTS: Final = 'artifacts = ["/app/out", "/app/gone", "/app/led", {source = "more", exclude = ["*.log", "a/b"]}]\n'
TASK: Final = f'version = "1.0"\n{ARTIFACTS}{CLOSED}[verifier]\nenvironment_mode = "separate"\n{COLLECT}'
#: What an artifact may hold that a patch does not: modes, links that lead out, names that are settings, no content.
WORK: Final = r"""
echo seen >/tmp/state; mkdir -p out/empty out/.git more/a/b more/b/c elsewhere; rm gone more/old
echo '*' >.gitignore; head -c 300000 /dev/urandom >out/data; echo x >'out/a
b'; echo y >out/-dash; ln out/data out/twin; mkfifo out/pipe; ln -s /etc/passwd out/away; ln -s ../../.. out/up
ln -s nowhere out/dangling; printf '#!/bin/sh\n' >out/tool; chmod 750 out/tool; echo z >out/.git/HEAD
chmod 1777 out/empty; touch -d 2001-02-03 out/-dash more/kept more/x.log more/a/b/c more/b/c/d
echo led >elsewhere/file; ln -s elsewhere led; rm README
"""
#: Lists all that a scorer sees of it, with types, modes, links, owners and times, and what is in it.
SEES: Final = r"""
cd /; { find app logs/artifacts | sort | while IFS= read -r each; do
    stat -c '%n %F %a %h %u:%g %N' "$each"; [ ! -f "$each" ] || sha256sum <"$each"; done
    stat -c '%n %Y' app/out/-dash app/more/kept logs/artifacts/dump; } 2>&1; cd - >/dev/null
"""


@pytest.fixture
def walls(isolation: str) -> None:
    if isolation == "none":
        pytest.skip("scorers run live without walls")


def write(desk: "Desk", name: str = "task", task: str = TASK, test: str = SEES + reward("false")) -> "Path":
    folder = write_scenario(desk.folder / "bench" / name, test=test)
    (folder / "task.toml").write_text(task)
    for each in ("gone", "more/old"):
        (folder / "environment" / each).parent.mkdir(exist_ok=True)
        (folder / "environment" / each).write_text("from before\n")
    return folder


def mend(desk: "Desk", test: str) -> str:
    """Move the benchmark elsewhere, with another test; return where."""
    (desk.folder / "newer").mkdir()
    (desk.folder / "bench").rename(desk.folder / "newer/bench")
    for place in (desk.folder / "newer/bench").rglob("test.sh"):
        place.write_text(test)
    return "newer/bench"


def sees(desk: "Desk") -> str:
    """What the scorers of the only trial saw, at its latest scoring."""
    folder = desk.folder / "runs/mine" / str(only(desk)["files"]["verifier"])
    return (folder / "test-stdout.txt").read_text()


def by_name(desk: "Desk") -> dict[str, dict[str, Any]]:
    return {result["scenario_name"]: result for result in desk.results("runs/mine")}


@needs_walls
def test_artifacts_cross_again_as_they_did(desk: "Desk") -> None:
    """So does what a hook wrote, which does not run again; that the patch is not whole does not matter."""
    write(desk)
    desk.sweep("run", "bench", "--agent", f"command:{WORK}", "--name", "mine", status=1)
    before, saw = only(desk), sees(desk)
    for each in ("app/out/tool regular file 750", "away' -> '/etc/passwd'", "app/led/file", "dump", "fifo"):
        assert each in saw
    for each in ("x.log", "more/a/b", "more/old", ".gitignore", "app/led symbolic"):
        assert each not in saw
    newer = mend(desk, SEES + reward('[ "$(cat /logs/artifacts/dump)" = seen ]'))
    assert "task: 0.000 -> 1.000" in desk.sweep("rescore", "mine", "--benchmark", newer, status=1).out
    assert sees(desk) == saw
    assert (only(desk)["flags"], only(desk)["files"]["crossed"]) == (before["flags"], before["files"]["crossed"])
    desk.sweep("rescore", "mine", status=1)
    assert (sees(desk), only(desk)["score"], only(desk)["rescored"]["score"]) == (saw, 1.0, 0.0)


def _archive(*members: tuple[str, bytes, str]) -> bytes:
    """Pack members of these names, kinds and contents or targets."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, text
            member.size = len(text) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


HOSTILE: Final = (
    ("crossing.json", tarfile.REGTYPE, '{"/logs/artifacts":[],"/app/out":[]}'),
    ("../../../../escaped", tarfile.REGTYPE, "x"),
    ("/app/absolute", tarfile.REGTYPE, "x"),
    ("app/out", tarfile.SYMTYPE, "/etc"),
    ("app/out/passwd", tarfile.REGTYPE, "x"),
    ("app/device", tarfile.CHRTYPE, ""),
    ("app/block", tarfile.BLKTYPE, ""),
)


@needs_walls
def test_artifacts_that_were_damaged_or_not_kept_are_named_and_the_others_are_scored_again(desk: "Desk") -> None:
    """An archive that somebody put in the place of the kept one reaches nothing, and its trial keeps its result."""
    names = ("whole", "cut", "flipped", "gone", "hostile", "large", "torn")
    for name in names:
        write(desk, name, f'version = "1.0"\nartifacts = ["out"]\n{CLOSED}[verifier]\nenvironment_mode = "separate"\n')
    work = (
        "mkdir out; head -c 20000 /dev/urandom >out/it; case $(cat $SWEEP_PROBLEM_FILE) in "
        "large) truncate -s 257M out/large;; torn) echo >out/closed; chmod 0 out/closed;; esac"
    )
    for name in names:
        (desk.folder / "bench" / name / "instruction.md").write_text(name)
    desk.sweep("run", "bench", "--agent", f"command:{work}", "--name", "mine")
    before = by_name(desk)
    kept = {name: desk.folder / "runs/mine" / result["files"].get("crossed", "") for name, result in before.items()}
    whole = kept["cut"].read_bytes()
    kept["cut"].write_bytes(whole[:-100])
    kept["flipped"].write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    kept["gone"].unlink()
    kept["hostile"].write_bytes(_archive(*HOSTILE))
    said = desk.sweep("rescore", "mine", "--benchmark", mend(desk, reward("[ -s out/it ]"))).out
    assert "cut: its crossed.tar.gz is damaged" in said
    assert "flipped: its crossed.tar.gz is damaged" in said
    assert "gone: its crossed.tar.gz is gone" in said
    assert "large: what its scorers were given was not kept (crossed.tar.gz: it has more than 256 MiB; " in said
    assert "torn: what its scorers were given was not kept (crossed.tar.gz: not all of it can be read; " in said
    assert "hostile: could not be scored again, and keeps 0.000" in said
    assert "1 of 2 trials scored again: 1 score changed." in said
    after = by_name(desk)
    for name in names[1:]:
        assert after[name] == {**before[name], "flags": [*before[name]["flags"], "rescore_failed"]}, name
    assert {name: result["score"] for name, result in after.items()} == {**dict.fromkeys(names, 0.0), "whole": 1.0}


@needs_walls
@pytest.mark.parametrize("before", ['artifacts = ["out"]\n', ""], ids=["others", "none"])
def test_artifacts_that_are_declared_otherwise_now_were_not_kept(desk: "Desk", before: str) -> None:
    """One that was not there then may have been made by the agent; that its scorers miss it says nothing."""
    task = f'version = "1.0"\n{{}}{CLOSED}[verifier]\nenvironment_mode = "separate"\n'
    folder = write(desk, task=task.format(before))
    desk.sweep("run", "bench", "--agent", "command:echo x >out; echo y >/tmp/other", "--name", "mine")
    (folder / "task.toml").write_text(task.format('artifacts = ["out", "/tmp/other"]\n'))
    said = desk.sweep("rescore", "mine", "--benchmark", mend(desk, reward("true")), status=1).out
    why = "what was put back is not what was kept: other artifacts are given to its scorers now"
    assert f"task: could not be scored again, and keeps 0.000: {why}\n" in said


@needs_walls
def test_what_crosses_beside_the_working_directory_crosses_again_with_its_patch(desk: "Desk") -> None:
    test = "cat made; stat -c %a%Y /logs/artifacts/more\n"
    write(
        desk, task=f'version = "1.0"\n{CLOSED}[verifier]\nenvironment_mode = "separate"\n', test=test + reward("false")
    )
    work = "echo x >made; cd /logs/artifacts; echo y >more; chmod 705 more; touch -d 2001-02-03 more"
    desk.sweep("run", "bench", "--agent", f"command:{work}", "--name", "mine")
    newer, saw = mend(desk, test + reward("true")), sees(desk)
    assert saw == "x\n705981158400\n"
    desk.sweep("rescore", "mine", "--benchmark", newer)
    assert (only(desk)["score"], sees(desk)) == (1.0, saw)


@needs_walls
def test_steps_are_given_the_artifacts_of_each_again(desk: "Desk") -> None:
    """The second one begins on the files of the first, artifacts or not."""
    own = 'artifacts = ["out"]\nverifier.environment_mode = "separate"\n'
    task = steps("one", "two", more=own)
    test = "cat out /logs/artifacts/it; " + reward("false")
    files = {f"steps/{name}/tests/test.sh": test for name in ("one", "two")}
    write_steps(desk.folder / "bench/task", task, files)
    work = "echo x >>kept; cat kept >out; wc -l <kept >/logs/artifacts/it; chmod 700 out"
    desk.sweep("run", "bench", "--agent", f"command:{work}", "--name", "mine")
    right = "[ $(stat -c %a out) = 700 ] && [ $(wc -l <out) = $(cat /logs/artifacts/it) ]"
    newer = mend(desk, reward(f"{right} && [ ! -e kept ]"))
    assert "task: 0.000 -> 1.000" in desk.sweep("rescore", "mine", "--benchmark", newer).out
    assert [step["score"] for step in only(desk)["steps"]] == [1.0, 1.0]


@pytest.mark.slow
@needs_walls
@pytest.mark.parametrize("stage", ["solve", "gather", "score"])
def test_a_rescoring_of_artifacts_that_was_killed_goes_on(desk: "Desk", stage: str) -> None:
    write(desk, test=SEES + reward("false"))
    work = "echo seen >/tmp/state; mkdir out; head -c 20000000 /dev/urandom >out/data; chmod 750 out"
    desk.sweep("run", "bench", "--agent", f"command:{work}", "--name", "mine")
    saw, begun = sees(desk), len(desk.journal("runs/mine"))
    running = desk.start("rescore", "mine", "--benchmark", mend(desk, SEES + reward("sleep 2")))
    entered = {"event": "stage.entered", "stage": stage}.items()
    wait_until(
        lambda: any(entered <= event.items() for event in desk.journal("runs/mine")[begun:]), running, seconds=PATIENCE
    )
    running.kill()
    assert only(desk)["score"] == 0.0
    assert "1 of 1 trial scored again: 1 score changed." in desk.sweep("resume", "mine").out
    assert (only(desk)["score"], only(desk)["flags"], sees(desk)) == (1.0, [], saw)


def test_what_was_scored_live_is_scored_again_only_without_what_ran_there(desk: "Desk") -> None:
    """That is said before, and flagged after, also when it is scored once more."""
    live = f'version = "1.0"\n{CLOSED}[verifier]\nenvironment_mode = "live"\n'
    write(desk, task=live, test=reward("pgrep -x sleep >/dev/null && [ -e made ]"))
    desk.sweep("run", "bench", "--agent", "command:touch made; sleep 1000 &", "--name", "mine")
    before = only(desk)
    why = "task: its scorers ran beside what the agent had left running, which was not kept"
    assert why in desk.refused("rescore", "mine")
    assert only(desk) == before
    for _ in range(2):
        said = desk.sweep("rescore", "mine", "--without-processes").out
        assert "Without what agents left running, or changed where nothing was kept: 1." in said
        assert (only(desk)["score"], "rescored_in_part" in only(desk)["flags"]) == (0.0, True)


@pytest.mark.root
def test_owners_cross_again_to_a_verifier_of_its_own_image(desk: "Desk") -> None:
    """Also of files that the agent, who is not root there, could not have made."""
    if desk.isolation == "none":
        pytest.skip("images need devboxes with walls")
    PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:latest")
    cache = {"SWEEP_CACHE": str(desk.folder / "cache")}
    desk.sweep("images", "load", "busybox.tar", environment=cache)
    folder = write(
        desk,
        task=f'artifacts = ["/srv/out", "/opt/tool"]\n{CLOSED}[agent]\nuser = "www-data"\n'
        f"[verifier.environment]\nallow_internet = false\nworkdir = '/work'\n",
        test=SEES.replace("app logs", "srv opt logs") + reward("false"),
    )
    (folder / "environment/Dockerfile").write_text(
        "FROM busybox\nRUN mkdir -p /srv/out /opt/tool && echo x >/srv/out/roots && chmod 750 /srv/out/roots"
        " && echo y >/opt/tool/y && chmod 700 /opt/tool && chmod 777 /srv/out\nWORKDIR /srv\n"
    )
    (folder / "tests/Dockerfile").write_text("FROM busybox\nCOPY . /tests/\nRUN mkdir /work\n")
    work = "echo z >out/mine; rm -f out/none; echo w >/logs/artifacts/w"
    desk.sweep("run", "bench", "--agent", f"command:{work}", "--name", "mine", environment=cache)
    saw = sees(desk)
    assert "srv/out/roots regular file 750 1 0:0" in saw
    assert "srv/out/mine regular file 644 1 33:33" in saw
    assert "opt/tool/y" in saw
    test = (folder / "tests/test.sh").read_text().replace("if false", "if true")
    desk.sweep("rescore", "mine", "--benchmark", mend(desk, test), environment=cache)
    assert (only(desk)["score"], only(desk)["flags"], sees(desk)) == (1.0, [], saw)
