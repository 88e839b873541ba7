"""A box whose file system is an image below a layer of its own.

Its secret: one mount. The spawner's thread mounts the layers once (`BwrapHost.roots` keeps it), and everything goes
through that mount: the box's programs, our own copies in and out, and the boxes beside it, which so share one file
system. The layer's folder is only counted and removed, for the kernel allows nobody else to change it while it is
mounted.
"""

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import anyio
import anyio.to_thread

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.bwrap.bwrap_args import (
    Mount,
    bind_veils,
    image_agent_command,
    image_arguments,
    seccomp_filter,
)
from orchestrator.service.sandbox.bwrap.bwrap_box import BwrapBox, BwrapStart
from orchestrator.service.sandbox.bwrap.host import BwrapHost
from orchestrator.service.sandbox.bwrap.image_files import (
    OURS,
    has_program,
    leave_out,
    make_folder,
    make_mount_point,
    restore_folders,
    restore_ids,
)
from orchestrator.service.sandbox.bwrap.overlay import flush, open_overlay
from orchestrator.service.sandbox.bwrap.sysfs import mount_sys
from orchestrator.service.sandbox.closure import PLACES, TOOLS
from orchestrator.service.sandbox.disk import DiskWatch, WatchedBox
from orchestrator.service.sandbox.folders import OWN, BoxFolder
from orchestrator.service.sandbox.own_ids import STATE
from orchestrator.service.sandbox.provider import Bind, BoxSpec, BoxStartFailed, Command, ImageRoot, Written
from orchestrator.service.sandbox.safe_fs import Copier, clone, disk_usage

if TYPE_CHECKING:
    from orchestrator.service.sandbox.user_namespace import IdMap

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What may be asked for where a box has one user.
ROOT = ("", *(f"{user}{group}" for user in ("root", "0") for group in ("", ":root", ":0")))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder(BoxFolder):
    """The folder of a box of an image: `files` is the layer that it writes, `work` the kernel's."""

    def create(self, spec: BoxSpec) -> None:
        """Make the layer. Raises BoxStartFailed."""
        try:
            self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.base.chmod(0o700)
            for name in ("files", "work"):
                (self.base / name).mkdir()
                (self.base / name).chmod(0o755)
                os.chown(self.base / name, self.owner or 0, self.owner or 0)
        except OSError as error:
            raise BoxStartFailed(f"devbox {spec.id}: its folders could not be made: {error}") from error

    def is_whole(self) -> bool:
        return self.files.is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A box's file system: the path that the thread of roots has it at, and the one by which this process opens it."""

    kept: str
    outside: Path


class ImageBox(BwrapBox):
    """A box of the `local` provider whose root is an image."""

    def __init__(
        self,
        spec: BoxSpec,
        image: ImageRoot,
        host: BwrapHost,
        watch: DiskWatch,
        forget: Callable[[], object],
        beside: AgentBox | None = None,
    ) -> None:
        """Raises BoxStartFailed."""
        if beside is not None and not isinstance(beside, ImageBox):
            raise BoxStartFailed(f"devbox {spec.id}: a box of an image can be started beside another such box only")
        _refuse(spec, image)
        if not host.images.ranges.own.is_whole and spec.user not in ROOT:
            raise BoxStartFailed(
                f"devbox {spec.id}: its programs are to run as {spec.user!r}, and there is one user only: {STATE.lack}"
            )
        ids = host.images.ranges.lend() if beside is None else beside.ids
        folder = ImageFolder(base=spec.layer or host.state / "boxes" / spec.id, owner=ids.user or None)
        super().__init__(spec, folder, host, watch, forget, beside)
        self.ids: IdMap = ids
        self.first_id: int = ids.user
        #: Whether files of images have other ids on this machine than in this box.
        self._is_moved = ids != host.images.ranges.own
        self._image = image
        #: Whose file system it has, if not its own.
        is_shared = beside is not None and beside.spec.image == image and spec.layer is None
        self._shared_with = beside if is_shared else None
        self._own_root: Root | None = None
        #: The file system that is mounted for bubblewrap, while that starts.
        self._shown: Path | None = None
        self._anchors: list[str] = []
        self._has_bash = True

    @property
    def root(self) -> Root:
        """Its file system. Raises BoxStartFailed if it has none, before its boot and after its end."""
        found = self._own_root if self._shared_with is None else self._shared_with.root
        if found is None:
            raise BoxStartFailed(f"devbox {self.id}: it has no file system")
        return found

    def environment(self) -> dict[str, str]:
        return {"PATH": PATH}

    def variables(self, command: Command) -> dict[str, str]:
        """Our own steps use our tools. So do scripts that our bash runs, for what the image lacks."""
        found = super().variables(command)
        if command.is_plain:
            found["PATH"] = f"{TOOLS}:{found['PATH']}"
        elif not self._has_bash and command.argv[: len(self.shell)] == self.shell:
            found["PATH"] = f"{found['PATH']}:{TOOLS}"
            found.setdefault("SHELL", self.shell[0])  # agents look here for a shell to work with
        return found

    @property
    def has_one_user(self) -> bool:
        return not self.ids.is_whole

    @property
    def shell(self) -> tuple[str, ...]:
        return ("bash" if self._has_bash else f"{TOOLS}/bash", "-c")

    def place(self, path: str) -> Path:
        return self.root.outside / path.strip("/")

    @property
    def written(self) -> Written:
        if self._shared_with is not None:
            return self._shared_with.written
        lowers = self._host.images.layers(self._image)
        return Written(own=self.folder.files, lowers=lowers[::-1])

    @property
    def tools(self) -> str | None:
        return TOOLS

    async def export(self, target: Path, only: str = "") -> None:
        binds = frozenset(bind.target.strip("/") for bind in self.spec.binds)
        folders = [only] if only else _own_folders(self.spec)

        def copy() -> None:
            for folder in folders:
                Copier(skip=binds, only=folder.strip("/")).copy(self.root.outside, target)

        await anyio.to_thread.run_sync(copy)

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        await self._host.images.prepare()
        namespace = await self._host.images.ranges.open(self.ids)
        if self._shared_with is None:
            await self._host.spawner.run(partial(self._mount, namespace if self._is_moved else None))
        await anyio.to_thread.run_sync(self._furnish)
        return await super().launch(control, errors)

    def _mount(self, namespace: int | None) -> None:
        """In the spawner's thread. Raises OSError."""
        mount = open_overlay(self._host.images.layers(self._image), self.folder.base, namespace)
        roots = self._host.roots
        try:
            kept = roots.run_blocking(partial(roots.attach, mount))
        finally:
            os.close(mount)
        self._own_root = Root(kept=kept, outside=roots.outside(kept))

    def _furnish(self) -> None:
        """Make in the box what its spec asks for. Raises OSError and BoxStartFailed."""
        root, spec = self.root.outside, self.spec
        if self._shared_with is not None:
            restore_folders(root, self.first_id)
        if spec.root is not None:
            try:
                Copier(owner=self.first_id, replaces=True).copy(spec.root, root)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                where = f"{error.filename} is a folder in one of them and none in the other"
                raise BoxStartFailed(f"devbox {spec.id}: its prepared root does not fit its image: {where}") from None
        self._has_bash = has_program(root, "bash", spec.environment.get("PATH", PATH))
        make = partial(make_mount_point, root, owner=self.first_id, gives_way=self._shared_with is not None)
        if spec.scratch:
            os.chown(self.folder.base, self.first_id, self.first_id)
        for number, (path, source) in enumerate(spec.scratch.items()):
            place = self.folder.files / str(number)
            place.mkdir()
            place.chmod(0o1777)
            os.chown(place, self.first_id, self.first_id)
            if source is not None:
                Copier(owner=self.first_id).copy(source, place)
            make(Bind(source=place, target=path))
        make_folder(root, spec.working_directory, self.first_id)
        binds = [bind for bind in spec.binds if bind.target not in PLACES]  # their place is in our own folder
        above = {folder for bind in binds for folder in make(bind)}
        self._anchors = sorted(above)
        self._used = disk_usage(self.folder.files)

    def how_to_start(self, control: int, limits: str) -> BwrapStart:
        namespace = self._host.images.ranges.opened(self.ids)
        root = self._host.spawner.admit(self.root.outside)
        self._shown = self.root.outside
        arguments = image_arguments(
            network=self.spec.network,
            namespace=namespace,
            root=root,
            shared=self._host.paths.shared,
            closure=self._host.images.closure,
            mounts=self._mounts(root),
            is_read_only=self.spec.is_read_only,
        )
        command = image_agent_command(control, limits)
        calls = seccomp_filter(has_one_user=self.has_one_user)
        return BwrapStart(arguments=arguments, command=command, fds=(namespace,), user=self.folder.owner, calls=calls)

    async def on_ready(self) -> None:
        await super().on_ready()
        assert self._root is not None
        await self._hide()
        await anyio.to_thread.run_sync(mount_sys, self._root.pid, self.cgroup.folders)

    async def save(self, target: Path) -> None:
        def copy() -> None:
            clone(self.folder.files, target)
            if self._is_moved:
                restore_ids(target, self.first_id)

        await anyio.to_thread.run_sync(copy)

    async def keep_layer(self, target: Path, *, without: Sequence[str] = ()) -> None:
        await self.retire()
        await self._unmount_root()

        def keep() -> None:
            leave_out(self.folder.files, without)
            if self._is_moved:
                restore_ids(self.folder.files, self.first_id)
            self.folder.hand_over(target)
            flush(target.parent)

        await anyio.to_thread.run_sync(keep)

    def give_back(self) -> None:
        self._host.images.ranges.give_back(self.ids)

    async def _hide(self) -> None:
        """Take down what bubblewrap has mounted in the box, or will mount no more."""
        shown, self._shown = self._shown, None
        if shown is not None:
            await self._host.spawner.run(partial(self._host.spawner.dismiss, shown))

    async def unmount(self) -> None:
        await self._hide()
        await self._unmount_root()
        await super().unmount()

    async def _unmount_root(self) -> None:
        root, self._own_root = self._own_root, None
        if root is not None:
            await self._host.roots.run(partial(self._host.roots.detach, root.kept))

    def _mounts(self, root: str) -> Iterable[Mount]:
        """Its binds; the folders above them are mounted onto themselves, so that it cannot move a bind away."""
        for folder in self._anchors:
            yield Mount(source=f"{root}/{folder}", target=f"/{folder}", writable=not self.spec.is_read_only)
        for number, path in enumerate(self.spec.scratch):
            yield Mount(source=f"{self._host.paths.boxes}/{self.id}/files/{number}", target=path, writable=True)
        yield from self.bound()
        for place in bind_veils(self._host.hidden, {bind.target: bind.source for bind in self.spec.binds}):
            yield Mount(source=f"{self._host.paths.shared}/nothing", target=place)

    def _watched(self) -> WatchedBox:
        users = range(self.ids.user, self.ids.user + self.ids.count)
        return replace(super()._watched(), owners=users, view=self.root.outside)


def _own_folders(spec: BoxSpec) -> list[str]:
    """The folders that an export is of: those of every box, the working directory, and the prepared root's."""
    prepared = [] if spec.root is None else [f"/{place.name}" for place in sorted(spec.root.iterdir())]
    found = sorted({*OWN, spec.working_directory, *prepared} - {"/"})
    return [path for path in found if not any(f"{path}/".startswith(f"{above}/") for above in found if above != path)]


def _refuse(spec: BoxSpec, image: ImageRoot) -> None:
    """Raise BoxStartFailed for a spec that no box can have, naming what is wrong."""
    for layer in image.layers:
        if not layer.is_dir():
            raise BoxStartFailed(f"devbox {spec.id}: its image lacks the layer {layer}; have the image fetched again")
    prepared = [] if spec.root is None else [f"/{place.name}" for place in sorted(spec.root.iterdir())]
    bound = [bind.target for bind in spec.binds if bind.target not in PLACES]
    for path in (spec.working_directory, *prepared, *bound):
        parts = PurePosixPath(path).parts
        if parts[:1] != ("/",) or ".." in parts or "\0" in path:
            raise BoxStartFailed(f"devbox {spec.id}: {path!r} is not an absolute path without '..' and NUL")
        if f"/{'/'.join(parts[1:2])}" in OURS:
            raise BoxStartFailed(f"devbox {spec.id}: {path} is not the image's: every devbox has its own /{parts[1]}")
