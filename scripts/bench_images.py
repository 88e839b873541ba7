"""What a devbox of an image costs beside one of the machine's own system, in batches that alternate."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import anyio

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.provider import BoxSpec, ImageRoot, Provider, shell
from orchestrator.service.sandbox.providers import open_provider

LAYERS, STARTS, COMMANDS, IDLE = 60, 20, 50, 50
FEW, MANY = 3, 23
#: A scenario on an image of one program; its agent and its tests cost next to nothing.
SCENARIO = {
    "task.toml": "[environment]\nallow_internet = false\n",
    "instruction.md": "Do nothing.\n",
    "environment/Dockerfile": 'FROM scratch\nCOPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n',
    "tests/test.sh": "echo 0 >/logs/verifier/reward.txt\n",
}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def busy() -> float:
    """CPU seconds that this machine has spent since it began, in programs and in the kernel."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) * TICK_S


def layers_below(place: Path) -> tuple[Path, ...]:
    found = tuple(place / str(number) for number in range(LAYERS))
    for each in found:
        (each / "srv").mkdir(parents=True)
        (each / "srv" / each.name).write_text("a file of a layer\n")
    return found


async def batch(provider: Provider, name: str, image: ImageRoot | None) -> tuple[float, float]:
    """CPU milliseconds of a start and of a command in it."""
    began = busy()
    boxes = [await provider.start(BoxSpec(id=f"{name}-{number}", image=image)) for number in range(STARTS)]
    start = (busy() - began) / STARTS * 1000
    began = busy()
    for _ in range(COMMANDS):
        await run(boxes[0], shell("true", words=boxes[0].shell), timeout=60)
    command = (busy() - began) / COMMANDS * 1000
    for box in boxes:
        await box.stop()
    return start, command


def memory(pids: Sequence[int]) -> int:
    """Bytes of processes, with their part of what is shared."""
    rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(int(line.split()[1]) << 10 for text in rollups for line in text.splitlines() if line.startswith("Pss:"))


def trial(place: Path, rounds: int) -> float:
    """CPU milliseconds of a trial on an image that is there, from sweeps of few and of many; all in them is ours."""
    scenario = place / "bench" / "scenario"
    for name, text in SCENARIO.items():
        (scenario / name).parent.mkdir(parents=True, exist_ok=True)
        (scenario / name).write_text(text)
    shutil.copy("/bin/busybox", scenario / "environment")

    def sweep(name: str, trials: int) -> float:
        words = ("run", "./bench", "--agent", "nop", "--trials", str(trials), "-n", "1", "--name", name)
        began = busy()
        subprocess.run([sys.executable, "-m", "orchestrator", *words], cwd=place, check=True, stdout=subprocess.DEVNULL)
        return busy() - began

    sweep("first", 1)
    costs = [sweep(f"many-{each}", MANY) - sweep(f"few-{each}", FEW) for each in range(rounds)]
    return median(costs) / (MANY - FEW) * 1000


async def main() -> None:
    rounds = int(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="sweep-bench-", ignore_cleanup_errors=True) as place:
        print(f"a warm trial on an image: {trial(Path(place), rounds):.0f} ms CPU", flush=True)
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as place:
        image = ImageRoot(layers=layers_below(Path(place) / "layers"))
        async with open_provider(Isolation.LOCAL, Path(place) / "state", ()) as provider:
            kinds = {"the machine's system": None, f"an image of {LAYERS} layers": image}
            costs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
            await (await provider.start(BoxSpec(id="first", image=image))).stop()
            for number in range(rounds):
                for index, (kind, root) in enumerate(kinds.items()):
                    costs[kind].append(await batch(provider, f"{number}-{index}", root))
            for kind, each in costs.items():
                start, command = (median(column) for column in zip(*each, strict=True))
                print(f"{kind}: start {start:.1f} ms CPU, a command {command:.1f} ms", flush=True)

            boxes = [await provider.start(BoxSpec(id=f"idle-{number}", image=image)) for number in range(IDLE)]
            time.sleep(1)  # noqa: ASYNC251 - everything else shall stand still
            pss = sum(memory(list(box.pids())) for box in boxes) / IDLE
            print(f"{IDLE} idle devboxes of it: {pss / 1e6:.1f} MB each", flush=True)
            for box in boxes:
                await box.stop()


if __name__ == "__main__":
    anyio.run(main)
