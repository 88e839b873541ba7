"""Agents that attack their runner, in whole sweeps of the real command: machine, night and neighbours live on.

What such an agent does to its own score is not asked here.
"""

import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson
import pytest

from tests.e2e.conftest import CLOSED, LAST_RITES, Desk, Ended, new_desk, write_scenario
from tests.processes import carrying
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

#: In a file beside the sweep, in the environment that it is started from, and in its home: of no agent's business.
HIDDEN: Final = "what-the-host-keeps-to-itself"
#: Seconds for a whole sweep with such an agent, on a machine that has others to serve.
PATIENCE: Final = 150.0
SETTINGS: Final = "devboxes = 4\nattempts = 1\n[timeouts]\nsolve = 30\ngather = 20\nscore = 20\nrelease = 10\n"
LOOKS_AROUND: Final = r"""
cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\0' '\n'
mount; env; ls -la / /home /tmp /run /var/tmp /root
for place in @DESK@ @HOME@ /root /proc/1/root@DESK@ /proc/1/cwd /oldroot@DESK@ /var/lib /mnt /media; do
    find "$place" -name address.json -o -name '*.sqlite' -o -name hidden 2>/dev/null | while read -r found; do
        echo "FOUND $found"; cat "$found"
    done
done
python3 - <<'P'
import glob, os, socket
for port in range(1, 65536):
    with socket.socket() as one:
        if one.connect_ex(("127.0.0.1", port)) == 0 and one.getsockname() != one.getpeername():  # itself, by chance
            print("OPEN", port)
for found in glob.glob("/tmp/**/*", recursive=True) + glob.glob("/run/**/*", recursive=True):
    if os.path.exists(found) and (os.stat(found).st_mode & 0o170000) == 0o140000:
        print("SOCKET", found)
P
echo looked
"""
ODD_FILES: Final = r"""
cd /logs/agent && ln -s /etc/passwd one; ln -s ../../../../../../../../../../@DESK@/hidden two; ln -s / root
ln -s . loop; mkfifo pipe; echo x >plain; ln plain same; chmod 6777 plain
python3 - <<'P'
import os, socket
os.chdir("/logs/agent")
socket.socket(socket.AF_UNIX).bind("/logs/agent/socket")
names = [
    b"two\nlines", b"red\x1b[31m\x1b]0;title\x07", b"\xff\xfe", b"-rf", b"--checkpoint-action=exec=sh x", b" ", b"...",
    b"$(id)", b"`id`", b'"; id; "', b"%2e%2e%2fup", b"a\\..\\..\\b", b"x" * 255, "\u202egpj.exe".encode(), b"cr\rhere",
    b"LEFT-OUT.txt",
]
for name in names:
    open(name, "wb").write(b"x")
os.makedirs("/".join(["deep"] + ["d"] * 300))
os.makedirs(".git/objects"); os.makedirs(".git/refs")
open(".git/HEAD", "w").write("ref: refs/heads/main\n")
open(".git/config", "w").write("[core]\n\trepositoryformatversion = 0\n\tfsmonitor = touch @DESK@/PWNED; false\n")
os.utime("plain", (2 ** 33, 2 ** 33))
with open("hole", "wb") as hole:
    hole.truncate(300 << 20)
P
"""
SWAPS: Final = r"""
mkdir -p /logs/agent/x; echo ok >/logs/agent/x/f; for i in $(seq 500); do echo $i >/logs/agent/x/$i; done
cat >/tmp/swap.py <<'P'
import os
os.chdir("/logs/agent")
while True:
    try:
        os.rename("x", "y"); os.symlink("@DESK@", "x"); os.unlink("x"); os.rename("y", "x")
        os.rename("x/f", "x/g"); os.symlink("@DESK@/hidden", "x/f"); os.unlink("x/f"); os.rename("x/g", "x/f")
    except OSError:
        pass
P
setsid python3 /tmp/swap.py >/dev/null 2>&1 </dev/null &
"""
FORKS: Final = r"""
cat >/tmp/fork.py <<'P'
import os, signal, time
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        time.sleep(0.01)
P
setsid python3 /tmp/fork.py >/dev/null 2>&1 </dev/null &
sleep 2
"""
EATS: Final = r"""
python3 - <<'P'
eaten = []
try:
    while True:
        eaten.append(bytearray(64 << 20))
        for at in range(0, 64 << 20, 4096):
            eaten[-1][at] = 1
except MemoryError:
    pass
P
"""
FLOODS: Final = r"""
printf '\033]0;title\007\033[2J\033[31m\033]52;c;eA==\007'
head -c 60000000 /dev/zero | tr '\0' '\033'
head -c 20000000 /dev/urandom >&2
"""
ATTACKS: Final = {
    "looks around for what is not its own": LOOKS_AROUND,
    "leaves files that nobody should open": ODD_FILES,
    "swaps files for links while they are packed": SWAPS,
    "forks for ever": FORKS,
    "eats all memory": EATS,
    "prints without end, and to the terminal": FLOODS,
    "ends everything it can see": "kill -9 -1",
    "freezes everything it can see": "setsid sh -c 'sleep 1; kill -STOP -1' & sleep 3",
    "closes every door behind it": "chmod 000 /app /logs/agent /home/user /tmp; kill -9 $PPID",
    "removes everything": "rm -rf --no-preserve-root / 2>/dev/null",
}


#: Of ten scenarios three are solved, and the devboxes of the others are broken, each in another way.
SOLVES_THREE: Final = r"""
case $(cat "$SWEEP_PROBLEM_FILE") in
[012]) touch /app/done ;;
3) kill -9 -1 ;;
4) kill -STOP $PPID; (setsid sleep 1000 &); kill -9 $$ ;;
5) chmod 000 /app /tmp /logs /logs/verifier /home/user ;;
6) (setsid sh -c 'while :; do sleep 1000 & done' >/dev/null 2>&1 </dev/null &); sleep 1 ;;
7) head -c 4G /dev/zero >/tmp/fill; sleep 20 ;;
8) rm -rf /app/* /logs/* 2>/dev/null; ln -s /dev /logs/verifier; ln -s /proc /app/done ;;
9) printf 'import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n' >/app/sitecustomize.py ;;
esac
"""


@pytest.fixture
def desk(sandboxes: None, tmp_path: Path) -> Iterator[Desk]:
    desk = new_desk(tmp_path, "local")
    for folder in (desk.folder, desk.home):
        (folder / "hidden").write_text(HIDDEN)
    for name in ("one", "two"):
        write_scenario(desk.folder / "bench" / name)
    yield desk
    desk.clear()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_agent_that_attacks_gets_nowhere_and_harms_nobody(desk: Desk, attack: str) -> None:
    mark = f"hostile-{uuid.uuid4().hex}"
    ended, token = sweep(desk, mark, attack)
    results = desk.results("runs/it")
    assert sorted((result["arm"], result["scenario_name"]) for result in results) == [
        ("hostile", "one"),
        ("hostile", "two"),
        ("oracle", "one"),
        ("oracle", "two"),
    ], str(ended)
    assert {result["score"] for result in results if result["arm"] == "oracle"} == {1.0}, str(ended)
    assert "\x1b" not in ended.out + ended.err
    wait_until(lambda: not carrying(mark), lambda: f"left: {carrying(mark)}", seconds=LAST_RITES)
    assert (desk.folder / "hidden").read_text() == HIDDEN
    assert not [path for path in walk(desk.folder) if path.name.startswith("PWNED")]
    brought = list(walk(desk.folder / "runs" / "it"))
    assert [path for path in brought if not is_plain(path)] == []
    said = b"".join(path.read_bytes() for path in brought if path.is_file())
    for word in (HIDDEN, token):
        assert word.encode() not in said
    if attack is LOOKS_AROUND:
        logs = [desk.log("runs/it", result) for result in results if result["arm"] == "hostile"]
        assert all(log.rstrip().endswith("looked") for log in logs)
        lines = [line for log in logs for line in log.splitlines()]
        assert [line for line in lines if line.startswith(("FOUND ", "OPEN ", "SOCKET "))] == []


def test_an_agent_that_breaks_its_devboxes_has_a_zero_for_each(desk: Desk) -> None:
    """The mean is over all of them: nobody gets rid of a scenario by breaking what it is scored in."""
    for number in range(10):
        test = "PYTHONPATH=/app python3 -c pass; [ -f /app/done ]; echo $((1 - $?)) >/logs/verifier/reward.txt"
        task = f"{CLOSED}memory_mb = 512\nstorage_mb = 512\n"
        write_scenario(desk.folder / "ten" / f"scenario-{number}", statement=f"{number}\n", test=test, task=task)
    (desk.folder / "three.toml").write_text(f"run = '''\n{SOLVES_THREE}\n'''\n")
    (desk.folder / "sweep.toml").write_text(SETTINGS.replace("attempts = 1", "attempts = 2"))
    words = ("run", "ten", "--config", "sweep.toml", "--agent", "./three.toml", "--name", "it")
    ended = desk.start(*words).end(PATIENCE)
    results = desk.results("runs/it")
    assert {result["outcome"] for result in results} == {"scored"}, str(ended)
    assert sum(result["score"] for result in results) / len(results) == pytest.approx(0.3), str(ended)
    assert {len(result["attempts"]) for result in results} == {1}, "no new attempt"
    flagged = {result["scenario_name"]: result["flags"] for result in results}
    assert "devbox_broken_by_agent" in flagged["scenario-7"]


def sweep(desk: Desk, mark: str, attack: str) -> tuple[Ended, str]:
    """A sweep of the attacker and of an honest arm beside it; how it ended, and the service's token."""
    script = attack.replace("@DESK@", str(desk.folder)).replace("@HOME@", str(desk.home))
    (desk.folder / "agents").mkdir()
    (desk.folder / "agents" / "hostile.toml").write_text(f"run = '''\nexport MARK={mark}\n{script}\n'''\n")
    (desk.folder / "sweep.toml").write_text(SETTINGS)
    words = ("run", "bench", "--config", "sweep.toml", "--agent", "hostile", "--agent", "oracle", "--name", "it")
    running = desk.start(*words, environment={"HIDDEN": HIDDEN})
    addresses = "runs/.service/*/address.json"
    wait_until(lambda: list(desk.folder.glob(addresses)), running)
    (file,) = desk.folder.glob(addresses)
    token = str(orjson.loads(file.read_bytes())["token"])
    return running.end(PATIENCE), token


def walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def is_plain(path: Path) -> bool:
    """A folder, or a file that is nobody's other file and gives nobody rights."""
    found = path.lstat()
    is_file = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    return (is_file or stat.S_ISDIR(found.st_mode)) and not found.st_mode & 0o7000
