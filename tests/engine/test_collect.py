"""Collected files: packed by the real scripts in folders of this machine, unpacked as if nothing of it were trusted."""

import io
import os
import re
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from orchestrator.agentkit.agent import Outputs
from orchestrator.engine.artifacts.scripts import packing, packing_verifier, patching, snapshot
from orchestrator.engine.artifacts.unpack import MAX_LINES, Account, ArchiveLimits, join, shown_before, unpack
from orchestrator.engine.redact import NO_SECRETS, Redactor

needs_git: Final = pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")
BARE: Final = ("bash", "cat", "cp", "cut", "diff", "find", "head", "ln", "mkdir", "mv", "rm", "sh", "sort", "split")


@dataclass(frozen=True, kw_only=True)
class Box:
    """The folders that a devbox has, and a shell in them."""

    root: Path
    path: str

    @property
    def home(self) -> Path:
        return self.root / "home/user"

    @property
    def app(self) -> Path:
        return self.root / "app"

    @property
    def traces(self) -> Path:
        return self.root / "logs/agent"

    def sh(self, script: str, cwd: Path | None = None) -> str:
        environment = {"PATH": self.path, "HOME": str(self.home), "LANG": "C.UTF-8"}
        ended = subprocess.run(
            ["bash", "-c", script], cwd=cwd or self.app, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended
        return ended.stdout

    def snapshot(self) -> None:
        self.sh(self._here(snapshot(**self._places)))

    def pack(self, outputs: Outputs, limits: ArchiveLimits | None = None) -> list[str]:
        return self.sh(self._here(packing(outputs, (), limits or ArchiveLimits(), **self._places))).splitlines()

    def diff(self) -> list[str]:
        return self.sh(self._here(patching(1 << 20, **self._places))).splitlines()

    def patch(self) -> bytes:
        pieces = [line.removeprefix("piece ") for line in self.diff()]
        return b"".join((self.home / ".sweep/patch" / piece).read_bytes() for piece in pieces)

    def archive(self, unit: str) -> io.BytesIO:
        pieces = sorted((self.home / ".sweep/gather").glob(f"{unit}.*"))
        return io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))

    def _here(self, script: str) -> str:
        """Without what the scripts add for devboxes whose PATH an agent may have changed."""
        return script.replace("PATH=/.sweep/tools/bin:/usr/local/bin:/usr/bin:/bin:$PATH", "")

    @property
    def _places(self) -> dict[str, str]:
        return {"scratch": str(self.home / ".sweep"), "directory": str(self.app), "home": str(self.home)}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    box = Box(root=tmp_path / "box", path=os.environ["PATH"])
    for folder in (box.home / ".sweep", box.app):
        folder.mkdir(parents=True)
    return box


@pytest.fixture
def apply(tmp_path: Path) -> Callable[[Box, bytes], Path]:
    """Applies a patch to the folder as it was before, and gives that."""

    def apply(box: Box, patch: bytes) -> Path:
        (tmp_path / "patch").write_bytes(patch)
        before = tmp_path / "before"
        box.sh(f"git apply --whitespace=nowarn {tmp_path / 'patch'}", cwd=before)
        return before

    return apply


def tree(folder: Path) -> dict[str, bytes]:
    """Files below a folder but for those that git keeps there."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    return {
        str(name): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for name, path in files.items()
        if ".git" not in name.parts
    }


CHANGES: Final = r"""
echo more >>kept; rm gone; printf 'crlf\r\n' >kept.crlf; head -c 3000 /dev/urandom >data.bin; chmod +x tool
mkdir -p 'a b/c' && echo new >'a b/c/"quoted" $HOME ü'; ln -s /etc/passwd link; rm -r folder; echo file >folder
echo ignored >ignored/x; echo forced >forced; (cd inner && echo more >>in-it && git init -q deeper && echo d >deeper/d)
"""
BEFORE: Final = r"""
echo kept >kept; echo gone >gone; printf 'crlf\n' >kept.crlf; head -c 3000 /dev/urandom >data.bin; echo t >tool
mkdir folder ignored inner; echo f >folder/f; echo old >ignored/old; printf 'ignored/\nforced\n' >.gitignore
echo '* text=auto eol=lf' >.gitattributes; (cd inner && git init -q && echo in >in-it)
"""
TRACKED: Final = "kept gone kept.crlf data.bin tool folder forced .gitignore .gitattributes"
COMMIT: Final = "git -c user.email=a@b -c user.name=n commit -qm"


@needs_git
@pytest.mark.parametrize("is_repository", [True, False])
def test_a_patch_turns_what_was_there_into_what_is_there(
    box: Box, apply: Callable[[Box, bytes], Path], tmp_path: Path, *, is_repository: bool
) -> None:
    """Binary files, modes, links, odd names, nested repositories: but nothing that a .gitignore names."""
    box.sh(BEFORE)
    if is_repository:
        box.sh(f"git init -q && echo was >forced && git add -f {TRACKED} && {COMMIT} before")
    shutil.copytree(box.app, tmp_path / "before", symlinks=True)
    box.snapshot()
    box.sh(CHANGES)
    if is_repository:
        box.sh(f"git add -u && {COMMIT} agent && git gc -q --prune=now")
    now = tree(box.app)
    patched = tree(apply(box, box.patch()))
    hidden = {"ignored/x"} if is_repository else {"ignored/x", "forced"}
    assert patched == {name: data for name, data in now.items() if name not in hidden}


@needs_git
def test_neither_the_repository_nor_its_index_is_touched(box: Box) -> None:
    box.sh(f"git init -q; echo a >a; git add a; {COMMIT} first; echo b >b; git add b; echo c >>a")
    shutil.rmtree(box.app / ".git/hooks", ignore_errors=True)

    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (box.app / ".git").rglob("*") if path.is_file()}

    before = state()
    box.snapshot()
    box.patch()
    assert state() == before


def test_nothing_changed_is_an_empty_patch(box: Box) -> None:
    (box.app / "a").write_text("a\n")
    box.snapshot()
    assert box.diff() == ["piece patch.aaa"]
    assert box.patch() == b""


@pytest.mark.parametrize("programs", [(), ("git",)])
def test_a_snapshot_that_is_ordered_twice_is_the_first(box: Box, tmp_path: Path, programs: tuple[str, ...]) -> None:
    """An endpoint that does not know our keys may come to the second order when the agent is at work."""
    if programs and shutil.which("git") is None:
        pytest.skip("git is not there")
    needed = (*BARE, *programs, "awk", "stat", "tr", "wc", "xargs")
    box = Box(root=box.root, path=str(_bin(tmp_path / "bin", *needed)))
    box.snapshot()
    (box.app / "new").write_text("new\n")
    box.snapshot()
    assert b"+new" in box.patch()


@needs_git
def test_files_the_agent_left_are_packed_again_after_a_death(box: Box) -> None:
    box.snapshot()
    (box.app / "new").write_text("new\n")
    first = box.patch()
    assert b"+new" in first
    assert box.patch() == first


def test_without_git_the_difference_is_diffs(box: Box, tmp_path: Path) -> None:
    bare = Box(root=box.root, path=str(_bin(tmp_path / "bin", *BARE, "stat", "awk", "tr", "wc", "xargs", "tar")))
    box.sh("echo one >one; mkdir sub; echo two >sub/two")
    bare.snapshot()
    box.sh("echo more >>one; rm sub/two; echo three >'sub/th ree'")
    patch = bare.patch().decode()
    assert {"+more", "-two", "+three"} <= set(patch.splitlines())
    assert "--- a/one" in patch
    assert "+++ b/one" in patch


def test_a_patch_that_cannot_be_made_is_reported_with_the_reason(box: Box, tmp_path: Path) -> None:
    without = [name for name in BARE if name != "diff"]
    bare = Box(root=box.root, path=str(_bin(tmp_path / "bin", *without, "stat", "awk", "tr", "wc", "xargs", "tar")))
    bare.snapshot()
    assert bare.diff() == ["no-patch the devbox has neither git nor diff"]


@needs_git
def test_a_tree_that_is_too_large_is_left_alone(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.engine.artifacts.scripts.MAX_FILES", 10)
    box.sh("for n in {1..20}; do echo $n >$n; done")
    box.snapshot()
    assert box.diff() == ["no-patch the working directory is too large"]
    assert not (box.home / ".sweep/snapshot/git").exists(), "and takes no room"


def test_files_are_named_by_globs_from_home_or_the_root(box: Box, tmp_path: Path) -> None:
    box.sh("mkdir -p ~/.tool/a/b ~/out; echo 1 >~/.tool/a/b/one.json; echo 2 >~/.tool/two.json; echo 3 >~/out/'x y'")
    box.sh(f"echo 4 >{box.app}/four; ln -s out ~/link; ln -s /etc ~/out/etc; mkfifo ~/out/pipe; echo t >{box.root}/t")
    box.snapshot()
    box.sh(f"mkdir -p {box.traces}/sub; echo trace >{box.traces}/sub/t.log")
    outputs = Outputs(
        artifacts=("~/.tool/**/*.json", "link", "nowhere/*", "absent", f"{box.app}/fo*", "$(touch pwned)"),
        trajectory=(".tool/two.json",),
    )
    told = box.pack(outputs)
    assert told == [
        "piece trajectory.near.aaa",
        "piece traces.near.aaa",
        "piece artifacts.near.aaa",
        "piece artifacts.far.aaa",
    ]
    for unit in ("trajectory.near", "traces.near", "artifacts.near", "artifacts.far"):
        assert unpack(box.archive(unit), tmp_path / unit.partition(".")[0], ArchiveLimits(), NO_SECRETS) == Account()
    far = str(box.app / "four").lstrip("/")
    assert tree(tmp_path / "artifacts") == {
        ".tool/a/b/one.json": b"1\n",
        ".tool/two.json": b"2\n",
        "link/x y": b"3\n",
        far: b"4\n",
    }
    assert tree(tmp_path / "trajectory") == {".tool/two.json": b"2\n"}
    assert tree(tmp_path / "traces") == {"sub/t.log": b"trace\n"}


def test_all_files_of_a_pattern_are_packed_however_many(box: Box, tmp_path: Path) -> None:
    box.sh("mkdir ~/many; cd ~/many; for n in {1001..2200}; do echo >$n; done")
    box.snapshot()
    box.pack(Outputs(artifacts=("many/*", "many/1??1")))
    assert unpack(box.archive("artifacts.near"), tmp_path / "artifacts", ArchiveLimits(), NO_SECRETS) == Account()
    assert set(tree(tmp_path / "artifacts")) == {f"many/{number}" for number in range(1001, 2201)}


def test_a_file_that_is_too_large_is_collected_in_part_and_says_so(box: Box, tmp_path: Path) -> None:
    box.snapshot()
    box.sh("head -c 5000 /dev/zero >~/large; echo small >~/small")
    limits = ArchiveLimits(file=2048)
    told = box.pack(Outputs(artifacts=("*",)), limits)
    assert f"note artifacts: {box.home}/large: too large, its beginning is here" in told
    for unit in ("artifacts.near", "artifacts.cut"):
        assert unpack(box.archive(unit), tmp_path / "artifacts", limits, NO_SECRETS) == Account()
    assert tree(tmp_path / "artifacts") == {"small": b"small\n", "large.beginning": bytes(2048)}


def test_no_more_than_there_is_room_for_is_packed(box: Box, tmp_path: Path) -> None:
    box.snapshot()
    box.sh("for n in {1..9}; do head -c 100000 /dev/zero >~/$n; done")
    limits = ArchiveLimits(room=350_000)
    box.pack(Outputs(artifacts=("*",)), limits)
    assert box.archive("artifacts.near").seek(0, 2) <= 350_000
    left_out = unpack(box.archive("artifacts.near"), tmp_path / "artifacts", limits, NO_SECRETS).left_out
    assert left_out
    assert 2 <= len(tree(tmp_path / "artifacts")) <= 3


def _bin(folder: Path, *names: str) -> Path:
    """A folder with these programs only."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or pytest.skip(f"{name} is not there"))
    return folder


def tar(*members: tuple[str, str, bytes]) -> io.BytesIO:
    """An archive as nobody honest makes it: (name, type, content or target of the link)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type = kind.encode()
            if kind == "0":
                member.size = len(data)
            else:
                member.linkname = data.decode()
            member.mode, member.uid, member.mtime = 0o6777, 0, 10**12
            archive.addfile(member, io.BytesIO(data) if kind == "0" else None)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    "members",
    [
        [("../out", "0", b"x")],
        [("/../../out", "0", b"x")],
        [("a/../../out", "0", b"x")],
        [("link", "2", b".."), ("link/out", "0", b"x")],
        [("link", "2", b"../out"), ("link", "0", b"x")],
        [("hard", "1", b"../../secret")],
        [("device", "3", b""), ("pipe", "6", b"")],
        [("..", "0", b"x"), (".", "0", b"x"), ("/", "0", b"x")],
        [("x" * 300, "0", b"x"), ("/".join("x" * 100), "0", b"x")],
    ],
)
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, members: list[tuple[str, str, bytes]]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "secret").write_text("secret")
    unpack(tar(*members), tmp_path / "home/files", ArchiveLimits(), NO_SECRETS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "secret"]
    for path in (tmp_path / "home").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or (path.is_file() and path.stat().st_mode & 0o7111 == 0)
    assert not (tmp_path / "home/out").exists()


def test_an_absolute_name_is_one_below_the_folder(tmp_path: Path) -> None:
    assert unpack(tar(("/etc/passwd", "0", b"x")), tmp_path / "files", ArchiveLimits(), NO_SECRETS) == Account()
    assert tree(tmp_path / "files") == {"etc/passwd": b"x"}


def test_limits_hold_whatever_the_devbox_sent(tmp_path: Path) -> None:
    members = [(f"{n}", "0", bytes(100)) for n in range(10)]
    for limits in (ArchiveLimits(file=99), ArchiveLimits(room=250), ArchiveLimits(files=2)):
        folder = tmp_path / repr(limits)[:60]
        left_out = unpack(tar(*members, ("a", "0", b"")), folder, limits, NO_SECRETS).left_out
        kept = sum(map(len, tree(folder).values())) if folder.exists() else 0
        assert left_out
        assert kept <= 250
        assert limits.room >= 0


@pytest.mark.parametrize("damage", ["torn", "noise", "empty"])
def test_an_invalid_archive_harms_nothing(tmp_path: Path, damage: str) -> None:
    whole = tar(("a", "0", bytes(5000)), ("b", "0", bytes(5000))).getvalue()
    data = {"torn": whole[:7000], "noise": os.urandom(5000), "empty": b""}[damage]
    assert len(unpack(io.BytesIO(data), tmp_path / "files", ArchiveLimits(), NO_SECRETS).left_out) == 1


def test_collected_files_have_no_secrets_in_content_or_name(tmp_path: Path) -> None:
    known = Redactor([("KEY", "hunter2hunter2")])
    large = b"x" * ((1 << 20) - 5) + b"hunter2hunter2" + b"y"
    unpack(tar(("hunter2hunter2.txt", "0", large)), tmp_path / "files", ArchiveLimits(), known)
    join(io.BytesIO(large), tmp_path / "patch.diff", ArchiveLimits(), known)
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["**************.txt"]
    for path in ((tmp_path / "files/**************.txt"), tmp_path / "patch.diff"):
        assert path.read_bytes() == large.replace(b"hunter2hunter2", b"*" * 14)


def test_settings_of_programs_are_collected_under_other_names_that_are_reported(tmp_path: Path) -> None:
    members = [(".git/config", "0", b"x"), (".git/HEAD", "0", b"x"), ("a/.EnvRC", "0", b"x"), ("a/b", "0", b"x")]
    account = unpack(tar(*members), tmp_path / "files", ArchiveLimits(), NO_SECRETS)
    assert set(tree(tmp_path / "files")) == {"dot-git/config", "dot-git/not-HEAD", "a/dot-EnvRC", "a/b"}
    assert list(account.renamed) == [
        ".git is dot-git",
        "dot-git/HEAD is dot-git/not-HEAD",
        "a/.EnvRC is a/dot-EnvRC",
    ]


def raw(name: bytes, kind: bytes, data: bytes = b"", size: bytes | None = None) -> bytes:
    """One member with a header that says what it is told to."""
    fields = [
        name.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        size or b"%011o\0" % len(data),
        b"0" * 11 + b"\0",
    ]
    head = b"".join(fields) + b" " * 8 + kind + bytes(100) + b"ustar  \0"
    head = head.ljust(512, b"\0")
    head = head[:148] + b"%06o\0 " % sum(head) + head[156:]
    return head + data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = next(size for size in range(len(body), len(body) + 12) if len(str(size)) + len(body) == size)
    return str(size).encode() + body


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        (raw(b"x", b"x", record(b"path", b"y" * (64 << 20))), "torn"),
        (raw(b"x", b"L", b"y" * (8 << 20)), "torn"),
        (
            raw(b"x", b"x", record(b"GNU.sparse.realsize", b"1099511627776")) + raw(b"s", b"0", b"1\n0\n1\n"),
            "no regular",
        ),
        (raw(b"sparse", b"S", bytes(512)), "no regular file"),
        (raw(b"neg", b"0", size=b"-0000000005\0"), "torn"),
        (raw(b"neg", b"0", size=b"\xff" * 12), "no regular file|limit"),
        (raw(b"huge", b"0", size=b"\x80" + b"\0" * 6 + b"\1" + bytes(4)), "limit"),
        (raw(b"x", b"x", b"-5 path=y\n"), "torn"),
        (raw(b"x", b"x", record(b"mtime", b"1e400")) + raw(b"late", b"0", b"x") + bytes(1024), ""),
    ],
)
def test_archive_headers_are_not_believed(tmp_path: Path, hostile: bytes, words: str) -> None:
    """Files before a false header are kept; and it takes no more memory than a piece, whatever it says."""
    archive = io.BytesIO(raw(b"before", b"0", b"x") + hostile)
    tracemalloc.start()
    account = unpack(archive, tmp_path / "files", ArchiveLimits(), NO_SECRETS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert re.search(words, "\n".join(account.left_out))
    assert (tmp_path / "files/before").read_bytes() == b"x"
    assert all(path.stat().st_blocks < 100 for path in (tmp_path / "files").iterdir())


def test_a_million_members_are_counted_and_not_reported_one_by_one(tmp_path: Path) -> None:
    member = raw(b"pipe", b"6")
    archive = io.BytesIO(b"".join(member.replace(b"pipe", b"%04d" % (n % 10_000), 1) for n in range(3000)))
    account = unpack(archive, tmp_path / "files", ArchiveLimits(), NO_SECRETS)
    assert len(list(account.left_out)) <= MAX_LINES + 1


def test_masked_values_are_counted_by_file_and_variable(tmp_path: Path) -> None:
    known = Redactor([("KEY", "hunter2-hunter2"), ("OTHER", "0123456789abcd")])
    members = [
        ("a", "0", b"hunter2-hunter2 0123456789ABCD hunter2-hunter2"),
        ("b", "0", b"x"),
        ("c", "0", b"hunter2-hun"),
    ]
    account = unpack(tar(*members), tmp_path / "files", ArchiveLimits(), known)
    assert account.masked == {"a": {"KEY": 2, "OTHER": 1}, "c": {"KEY": 1}}


def test_lines_of_a_patch_from_before_the_agent_are_the_scenarios_own() -> None:
    known = Redactor([("MODEL", "qwen-coder-30b"), ("KEY", "hunter2-hunter2")])
    patch = b"--- a/x\n+++ b/x\n -1 +1 \n model = qwen-coder-30b\n-old\n+hunter2-hunter2 qwen-coder-30b\n"
    own = shown_before(io.BytesIO(patch), known)
    assert own == {"MODEL"}
    assert known.without(own).mask(patch) == patch.replace(b"hunter2-hunter2", b"*" * 15)


def test_files_that_scorers_left_are_a_group_of_their_own(box: Box, tmp_path: Path) -> None:
    folder = box.root / "logs/verifier"
    folder.mkdir(parents=True)
    (folder / "ctrf.json").write_text("{}")
    os.mkfifo(folder / "pipe")
    told = box.sh(box._here(packing_verifier(ArchiveLimits(), **box._places))).splitlines()
    assert told == ["piece verifier.near.aaa"]
    archive = io.BytesIO((box.home / ".sweep/verifier/verifier.near.aaa").read_bytes())
    assert unpack(archive, tmp_path / "verifier", ArchiveLimits(), NO_SECRETS) == Account()
    assert tree(tmp_path / "verifier") == {"ctrf.json": b"{}"}
