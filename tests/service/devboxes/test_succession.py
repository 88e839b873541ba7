"""From the agent's box to the evidence: what it changed is found from outside, and the patch is made elsewhere."""

import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from orchestrator.core.protocol import ScoringMode
from orchestrator.engine.artifacts.scripts import settled_patching
from orchestrator.service.devboxes.remains import put, read, resolved
from orchestrator.service.devboxes.succession import EVIDENCE, PREPARED, SCRATCH, Bootable, Succession
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.bwrap.image_box import PATH
from orchestrator.service.sandbox.closure import TOOLS
from orchestrator.service.sandbox.commands import read_file, run, write_file
from orchestrator.service.sandbox.folders import VERIFIER
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import (
    HOME,
    Box,
    BoxSpec,
    Command,
    ImageRoot,
    RemainingProcesses,
    shell,
)
from tests.boxes import lent

pytestmark = pytest.mark.anyio
APP: Final = "/app"
LIMIT: Final = 64 << 20
COUNT_SLEEPERS: Final = "grep -lx sleep /proc/[0-9]*/comm | wc -l"


@dataclass(slots=True)
class Stage:
    """One devbox: its boxes, and the tree that it began with."""

    provider: BwrapProvider
    root: Path
    place: Path
    image: ImageRoot | None = None
    directory: str = APP
    boxes: Succession = field(init=False)

    @property
    def home(self) -> str:
        return "/home/user" if self.image is None else "/root"

    async def begin(self, *, setup: str = "true", environment: dict[str, str] | None = None, user: str = "") -> None:
        """Boot it, run its setup, and let the agent begin."""
        if self.image is not None and environment is None:  # the image has no git of its own
            environment = {"PATH": f"{PATH}:{TOOLS}"}
        prepared = Prepared(
            root=self.root, image=self.image, working_directory=self.directory, environment=environment or {}
        )
        spec = BoxSpec(
            id="dbx_1",
            working_directory=self.directory,
            root=self.root,
            image=self.image,
            environment={**(environment or {}), "KEY": "k"},
            user=user,
        )
        box = await self.provider.start(spec)

        async def settle_in(fresh: Box) -> None:
            await run(fresh, shell(setup, words=fresh.shell), timeout=20)

        self.boxes = Succession(
            provider=self.provider,
            agents=Bootable(prepared=prepared, spec=spec, covers=(), egress=None, settle_in=settle_in),
            box=box,
            folder=self.place / "evidence",
        )
        await settle_in(box)
        await self.boxes.mark()

    async def work(self, script: str) -> None:
        """The agent works."""
        done = await run(self.boxes.agents, shell(script, words=self.boxes.agents.shell), timeout=30)
        assert done.status == 0, done.output

    async def look(self, script: str) -> str:
        """Output of a client's command."""
        return (
            await run(self.boxes.front, Command(argv=("bash", "-c", script), cwd=self.directory), timeout=30)
        ).output

    async def patch(self, mode: ScoringMode = ScoringMode.SHARED) -> tuple[bytes, list[str]]:
        """The patch, and what is told beside its pieces."""
        await self.boxes.settle(mode)
        script = settled_patching(
            LIMIT, evidence=EVIDENCE, prepared=PREPARED, scratch=SCRATCH, directory=self.directory
        )
        front = self.boxes.front
        await write_file(front, f"{SCRATCH}/patch.sh", script.encode())
        done = await run(front, Command(argv=("bash", f"{SCRATCH}/patch.sh")), timeout=60)
        assert done.status == 0
        lines = done.stdout.decode().splitlines()
        names = [line.removeprefix("piece ") for line in lines if line.startswith("piece ")]
        data = b"".join([await read_file(front, f"{SCRATCH}/patch/{name}") for name in names])
        return data, [line for line in lines if not line.startswith("piece ")]


@pytest.fixture(params=["system", "image"])
async def stage(request: pytest.FixtureRequest, provider: BwrapProvider, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage for each kind of root."""
    image = request.getfixturevalue("image") if request.param == "image" else None
    (tmp_path / "root/app/src").mkdir(parents=True)
    (tmp_path / "root/app/src/old.py").write_text("one\ntwo\n")
    (tmp_path / "root/app/gone.txt").write_text("to be removed\n")
    (tmp_path / "root/app/.gitignore").write_text("build/\n")
    async with lent(provider):
        yield Stage(provider=provider, root=tmp_path / "root", place=tmp_path, image=image)


def applied(patch: bytes, root: Path, target: Path) -> None:
    """Apply a patch to a copy of the prepared tree."""
    subprocess.run(["cp", "-a", root / "app", target], check=True)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    subprocess.run(["git", "apply", "--binary", "-"], input=patch, cwd=target, check=True)


def differences(one: Path, other: Path) -> str:
    """Differences between two trees, git's own folders apart."""
    command = ["diff", "-r", "--no-dereference", "-x", ".git", str(one), str(other)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


DEEDS: Final = r"""
printf 'one\r\ntwo\r\n' >src/old.py; rm gone.txt; head -c 3000 /dev/urandom >data.bin; printf '' >empty
printf '#!/bin/sh\n' >run.sh; chmod 755 run.sh; ln -s src/old.py link; mkdir -p 'odd name'
printf x >"odd name/tab	and
line"; printf y >./-dash; printf z >'ünï.txt'
"""


async def test_a_patch_makes_of_the_prepared_tree_what_the_agent_left(stage: Stage, tmp_path: Path) -> None:
    """Binary files, modes, links, carriage returns, removed and empty files, and names as odd as they may be."""
    await stage.begin()
    await stage.work(DEEDS)
    patch, told = await stage.patch()
    assert told == []
    applied(patch, stage.root, tmp_path / "there")
    left, there = stage.boxes.files / "app", tmp_path / "there"
    assert differences(left, there) == ""
    assert (there / "run.sh").stat().st_mode & 0o100
    assert (there / "link").is_symlink()


async def test_files_that_setup_made_are_not_the_agents(stage: Stage) -> None:
    await stage.begin(setup="echo made >made.txt; echo three >>src/old.py")
    await stage.work("echo more >>made.txt")
    patch, told = await stage.patch()
    assert told == []
    assert [line for line in patch.decode().splitlines() if line.startswith(("diff", "+", "-"))] == [
        "diff --git a/made.txt b/made.txt",
        "--- a/made.txt",
        "+++ b/made.txt",
        "+more",
    ]


async def test_nothing_is_hidden_by_a_gitignore_that_the_agent_wrote(stage: Stage) -> None:
    await stage.begin()
    await stage.work("echo '*' >.gitignore; echo '*' >src/.gitignore; echo x >hidden; echo y >src/hidden")
    patch, told = await stage.patch()
    assert told == []
    assert {f"b/{name}".encode() for name in ("hidden", "src/hidden")} <= set(patch.split())


async def test_ignored_files_are_in_the_patch_if_staged_and_reported_if_not(stage: Stage) -> None:
    await stage.begin(setup="git init -q .")
    await stage.work(
        "mkdir build build/__pycache__; echo x >build/staged; echo y >build/not; echo z >build/__pycache__/a.pyc"
    )
    await stage.work("git add -f build/staged; git config core.fsmonitor 'touch /evidence/pwned'")
    patch, told = await stage.patch()
    assert b"b/build/staged" in patch
    assert told == [
        "left build/__pycache__/a.pyc: .gitignore names it, and the agent did not stage it",
        "cut build/not: .gitignore names it, and the agent did not stage it",
    ]
    assert await stage.look("ls /evidence") == "lock\nmade\npatch\npatch.sh\n"


async def test_files_too_large_and_special_files_are_reported(stage: Stage) -> None:
    (stage.root / "app/grows").write_text("small")
    await stage.begin(setup="truncate -s 40M huge")
    await stage.work("truncate -s 40M grows; rm huge; mkfifo pipe; echo ok >fine; chmod 000 fine")
    patch, told = await stage.patch()
    assert told[-3:] == [
        "cut grows: 41,943,040 bytes; 33,554,432 fit into a patch",
        "cut huge: was removed, and too large before",
        "cut pipe: no file, link or folder",
    ]
    assert b"grows" not in patch


async def test_files_that_were_swapped_with_their_times_set_back_are_seen(stage: Stage) -> None:
    """The kernel's own time of the change of a file cannot be set back from inside."""
    await stage.begin()
    await stage.work("touch -r src/old.py ref; printf 'ONE\\ntwo\\n' >src/old.py; touch -r ref src/old.py; rm ref")
    patch, _ = await stage.patch()
    assert b"+ONE" in patch


async def test_changes_outside_are_listed_and_files_that_scorers_load_are_marked(stage: Stage) -> None:
    await stage.begin(environment={"PATH": "/app/bin:/opt/tool:/usr/bin:/bin"})
    await stage.work(
        "echo x >~/notes; echo y >~/.bash_login; mkdir -p bin; echo z >bin/python3; echo t >/tmp/free"
        "; echo w >src/new.py"
    )
    settled = await stage.boxes.settle(ScoringMode.SHARED)
    assert settled.changes is not None
    assert settled.changes.system == ("/app/bin/python3", f"{stage.home}/.bash_login")
    assert (
        await stage.look(f"cat {EVIDENCE}/changes.txt") == f"new {stage.home}/.bash_login 2\nnew {stage.home}/notes 2\n"
    )


async def test_an_agents_own_settings_are_no_start_up_files_and_those_of_tools_are(stage: Stage) -> None:
    await stage.begin()
    await stage.work(
        "mkdir -p ~/.config/myagent ~/.config/git ~/.cache/myagent /srv 2>/dev/null; echo 1 >~/.config/myagent/config"
        "; echo 2 >~/.cache/myagent/package.json; mkdir -p ~/.config/pip; echo 3 >~/.config/pip/pip.conf"
        "; echo 4 >~/.config/git/config"
    )
    settled = await stage.boxes.settle(ScoringMode.SHARED)
    assert settled.changes is not None
    assert settled.changes.system == (f"{stage.home}/.config/git/config", f"{stage.home}/.config/pip/pip.conf")


async def test_a_changed_program_is_told_apart_in_a_virtual_environment_and_is_work_elsewhere(stage: Stage) -> None:
    for folder in ("bin", "env/bin"):
        (stage.root / "app" / folder).mkdir(parents=True)
        (stage.root / "app" / folder / "run").write_text("one\n")
    (stage.root / "app/env/pyvenv.cfg").write_text("home = /usr/bin\n")
    await stage.begin()
    await stage.work("for folder in bin env/bin; do echo two >$folder/run; echo three >$folder/new; done")
    settled = await stage.boxes.settle(ScoringMode.SHARED)
    assert settled.changes is not None
    assert settled.changes.system == ("/app/env/bin/run",)


async def test_evidence_is_read_only_and_nothing_the_agent_wrote_at_home_is_run(stage: Stage) -> None:
    await stage.begin()
    await stage.work("echo 'echo forged' >~/.bash_profile; (setsid sleep 1000 >/dev/null 2>&1 </dev/null &); sleep 0.2")
    assert (await stage.boxes.settle(ScoringMode.SHARED)).left.names == {"sleep": 1}
    said = await run(stage.boxes.front, shell(f"echo x >/app/x; echo $HOME $KEY; {COUNT_SLEEPERS}"), timeout=20)
    assert said.stdout == b"/evidence\n0\n"
    assert b"Read-only file system" in said.stderr


async def test_a_separate_scoring_sees_what_crosses_and_nothing_else(stage: Stage) -> None:
    await stage.begin(setup="echo made >~/by-setup", environment={"WORD": "w"})
    await stage.work(
        "echo mine >~/mine; echo out >/logs/artifacts/a; echo new >src/new.py; echo t >/tmp/t; echo l >/logs/x"
    )
    await stage.boxes.settle(ScoringMode.SEPARATE)
    await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ()})
    async with stage.boxes.scoring_box(variables={"KEY": "k"}) as box:
        found = await run(
            box,
            Command(argv=("bash", "-c", "find ~ /app /logs /tmp -type f ! -name '.[bp]*'; echo $WORD $KEY")),
            timeout=20,
        )
    assert sorted(found.output.split()) == [
        *("/app/.gitignore", "/app/gone.txt", "/app/src/new.py", "/app/src/old.py"),
        *sorted([f"{stage.home}/by-setup", "/logs/artifacts/a"]),
        *("k", "w"),
    ]


async def test_declared_artifacts_cross_by_their_paths_links_and_all(stage: Stage) -> None:
    await stage.begin()
    await stage.work(
        "mkdir deep; echo 42 >deep/answer; ln -s deep/answer result; ln -s /proc/version outside; echo no >src/old.py;"
        "mkdir aside; echo 7 >aside/it; ln -s aside a; ln -s aside b"
    )
    await stage.boxes.settle(ScoringMode.SEPARATE)
    await stage.boxes.lay_out(
        ScoringMode.SEPARATE,
        dict.fromkeys([f"/app/{name}" for name in ("result", "outside", "missing", "deep", "a", "b")], ()),
    )
    async with stage.boxes.scoring_box() as box:
        found = await run(box, shell("cd /app; cat deep/answer src/old.py [ab]/it; ls"), timeout=20)
    assert found.output == "42\none\ntwo\n7\n7\na\nb\ndeep\ngone.txt\nsrc\n"


async def test_a_separate_scoring_can_be_repeated_and_the_untouched_environment_be_tried(stage: Stage) -> None:
    await stage.begin()
    await stage.work("echo new >src/old.py")
    await stage.boxes.settle(ScoringMode.SEPARATE)
    for _ in range(2):
        await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ()})
        async with stage.boxes.scoring_box() as box:
            assert (
                await run(box, shell(f"cat /app/src/old.py; echo 1 >{VERIFIER}/reward.txt"), timeout=20)
            ).output == "new\n"
    async with stage.boxes.untouched(), stage.boxes.scoring_box() as box:
        assert (await run(box, shell(f"cat /app/src/old.py; ls {VERIFIER}"), timeout=20)).output == "one\ntwo\n"
    assert read(stage.boxes.files, f"{VERIFIER}/reward.txt", 10) == b"1\n"


async def test_shared_scorings_have_the_agents_files_nothing_that_runs_and_tests_of_their_own(stage: Stage) -> None:
    await stage.begin()
    await stage.work(
        "echo mine >~/mine; echo 1 >/logs/verifier/reward.txt; mkdir /tests/x; echo t >/tmp/t; chmod 000 /app /tmp"
    )
    await stage.boxes.settle(ScoringMode.SHARED)
    await stage.boxes.lay_out(ScoringMode.SHARED)
    given = stage.place / "given"
    given.mkdir(mode=0o755)
    (given / "test.sh").write_text("hidden")
    for _ in range(2):
        async with stage.boxes.scoring_box(tests=given) as box:
            look = "cat ~/mine /tmp/t; ls /logs/verifier; cat /tests/*; echo $KEY; echo n | tee /tests/n /tests/test.sh"
            found = await run(box, shell(look), timeout=20)
        assert found.output == "mine\nt\nhidden\nn\n"
    assert (given / "test.sh").read_text() == "hidden"


async def test_a_live_one_meets_what_was_left_and_another_does_not(stage: Stage) -> None:
    await stage.begin()
    await stage.work("(setsid sleep 1000 >/dev/null 2>&1 </dev/null &); sleep 0.2")
    assert (await stage.boxes.settle(ScoringMode.LIVE)).left == RemainingProcesses(names={"sleep": 1})
    assert (await run(stage.boxes.agents, shell(COUNT_SLEEPERS), timeout=20)).output == "1\n"
    assert (await stage.boxes.settle(ScoringMode.SHARED)).mode is ScoringMode.LIVE
    assert (await stage.boxes.settle(ScoringMode.SHARED, is_live_over=True)).mode is ScoringMode.SHARED
    assert await stage.boxes.agents.wait_dead() == "retired"


async def test_what_code_under_test_changes_while_it_is_judged_is_named_with_the_next_step(stage: Stage) -> None:
    """And not what the step before was told of already."""
    await stage.begin()
    place = f"{stage.home}/.local/lib/python3.11/site-packages"
    await stage.work(f"mkdir -p {place}; echo >{place}/sitecustomize.py; echo x >work")
    settled = await stage.boxes.settle(ScoringMode.SHARED)
    assert settled.changes is not None
    assert settled.changes.system == (f"{place}/sitecustomize.py",)
    await stage.boxes.lay_out(ScoringMode.SHARED)
    async with stage.boxes.scoring_box() as box:
        assert (await run(box, shell(f"echo >{place}/usercustomize.py"), timeout=20)).status == 0
    await stage.boxes.go_on()
    await stage.boxes.mark()
    await stage.work("echo y >work")
    settled = await stage.boxes.settle(ScoringMode.SHARED)
    assert settled.changes is not None
    assert settled.changes.system == (f"{place}/usercustomize.py",)


async def test_files_hidden_from_the_lists_are_named(stage: Stage) -> None:
    """Beside our own files, in git's folder, behind links to where scorers have theirs, in names that git refuses."""
    await stage.begin(setup="git init -q .")
    await stage.work(
        "mkdir -p ~/.sweep/l .git/x 'git~1'; echo x >~/.sweep/l/x; ln -s ~/.sweep/l ~/.local; echo y >.git/x/sol.py\n"
        "echo z >'git~1/sol.py'; git config core.fsmonitor false; ln -s /tests/expected out; echo s >random.py"
    )
    _, told = await stage.patch()
    settled = await stage.boxes.settle(ScoringMode.SHARED)
    assert settled.changes is not None
    assert set(settled.changes.system) == {"/app/.git/config", "/app/out", "/app/random.py", f"{stage.home}/.local"}
    assert "cut .git/x/sol.py: a file that is none of git's, in a folder of that name" in told
    assert "cut git~1/sol.py: git keeps no file of that name" in told
    await stage.boxes.lay_out(ScoringMode.SHARED)
    assert not (stage.boxes.files / "app/out").is_symlink()


async def test_paths_that_are_very_long_cost_a_line_each(stage: Stage) -> None:
    await stage.begin()
    await stage.work(
        "python3 - <<'E'\nimport os\nfor _ in range(60):\n os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        "for n in range(50): open(str(n), 'w').close()\nE"
    )
    patch, told = await stage.patch()
    assert patch == b""
    assert all(line.startswith("cut ") and len(line) < 500 for line in told)


def test_links_lead_where_they_would_in_the_box(tmp_path: Path) -> None:
    root = tmp_path / "files"
    (root / "app/real").mkdir(parents=True)
    (root / "app/real/file").write_text("x")
    for name, target in {"up": "../../../../etc", "abs": "/app/real", "loop": "loop", "dot": "./real/../real"}.items():
        (root / "app" / name).symlink_to(target)
    assert resolved(root, "/app/abs/file") == root / "app/real/file"
    assert resolved(root, "/app/dot/file") == root / "app/real/file"
    assert resolved(root, "/app/up/passwd") is None
    assert resolved(root, "/app/loop") is None
    assert put(root, "/app/abs/__init__.py", b"", 0o644) == "/app/real/__init__.py"


async def test_the_home_of_an_agent_is_its_users_where_that_can_be_written(stage: Stage) -> None:
    """What our own steps keep there goes when the agent's box is settled."""
    await stage.begin()
    assert await stage.boxes.find_home() == stage.home
    await stage.work('mkdir -p "$HOME/.sweep/agent" && echo kept >"$HOME/kept"')
    await stage.boxes.settle(ScoringMode.SHARED)
    assert await stage.look(f"ls -A {stage.home} | grep -e sweep -e kept") == "kept\n"


async def test_an_agent_whose_user_has_no_home_to_write_in_has_ours(stage: Stage) -> None:
    if stage.image is None:
        pytest.skip("the machine's own system has one user")
    await stage.begin(user="www-data")
    assert await stage.boxes.find_home() == HOME
