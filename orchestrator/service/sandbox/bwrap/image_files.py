"""What boxes of images have besides the image: ranges of ids, our Python, and the folders that every box finds.

Its secret: two layers of ours. The upper one covers what an image may have as a link to anywhere, so that our mounts
meet folders and nothing of the box's own layer is spent on them; the lower one fills in what an image may lack, and
leaves the image's own folders as they are. A user namespace takes an interpreter's start to make, and belongs to a
range of ids, not to a box: it is kept for the next box of the range.
"""

import os
import shutil
import ssl
import stat
import struct
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import anyio
import anyio.to_thread

from orchestrator.service.sandbox.bwrap.overlay import open_inside
from orchestrator.service.sandbox.bwrap.shared_files import WRITTEN
from orchestrator.service.sandbox.bwrap.spawner import Spawner
from orchestrator.service.sandbox.closure import IN_BOX, Closures
from orchestrator.service.sandbox.folders import LOGS
from orchestrator.service.sandbox.provider import HOME, Bind, BoxStartFailed, ImageRoot
from orchestrator.service.sandbox.safe_fs import FOLDER, MAX_DEPTH, TooDeep, remove
from orchestrator.service.sandbox.user_namespace import ID_COUNT, IdMap, UserNamespace

#: Folders of the box that are not the image's: mounts of ours cover them.
OURS: Final = (IN_BOX, "/dev", "/proc", "/sys")
_NEEDED: Final = (*OURS, "/tmp")  # noqa: S108
_COVERING: Final = (*_NEEDED, "/tests", "/solution", *LOGS)
_TRUST: Final = ("/etc/ssl", "/etc/ssl/certs")
_LACKING: Final = ("/app", HOME, *_TRUST)
_MODES: Final = {**dict.fromkeys((*LOGS, "/tests", "/solution"), 0o777), "/tmp": 0o1777, HOME: 0o1777}  # noqa: S108
#: Where an image without trusted certificates has this machine's, for agents that speak to their hosts by TLS.
_CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
_CAPABILITY: Final = "security.capability"
_VERSION_2: Final = 0x02000000


class IdRanges:
    """Lends ranges of the host's ids, each with the user namespace that maps all ids of images to it.

    Where there are no such ranges, all boxes have the ids that the files of images have on this machine.
    """

    def __init__(self, starts: Iterable[int], own: IdMap, obstacle: str = "") -> None:
        """`starts` are the first ids of the ranges; with an `obstacle`, nothing is lent."""
        self.own = own
        self._free = [IdMap(user=start, group=start) for start in reversed(list(starts))]
        self._is_shared = not self._free
        self._obstacle = obstacle
        self._namespaces: dict[IdMap, UserNamespace] = {}
        self._making = anyio.Lock()

    def lend(self) -> IdMap:
        """Return the ids of a box. Raises BoxStartFailed."""
        if self._obstacle:
            raise BoxStartFailed(self._obstacle)
        if self._is_shared:
            return self.own
        if not self._free:
            raise BoxStartFailed("no range of user ids is left for another devbox of an image; stop some first")
        return self._free.pop()

    def give_back(self, ids: IdMap) -> None:
        if not self._is_shared:
            self._free.append(ids)

    async def open(self, ids: IdMap) -> int:
        """Return the open user namespace of ids that are lent. Raises BoxStartFailed."""
        async with self._making:
            if ids not in self._namespaces:
                self._namespaces[ids] = await UserNamespace.make(ids)
        return self.opened(ids)

    def opened(self, ids: IdMap) -> int:
        """Return what `open` has returned for these ids."""
        return self._namespaces[ids].fd

    def close(self) -> None:
        while self._namespaces:
            self._namespaces.popitem()[1].close()


class Images:
    """What the boxes of images share: layers below the folder `shared`, and one of `closures`."""

    def __init__(self, shared: Path, ranges: IdRanges, closures: Closures, spawner: Spawner) -> None:
        self.ranges = ranges
        self._shared = shared
        self._closures = closures
        self._spawner = spawner
        self._has_layers = False
        self._closure: Path | None = None
        self._admitted = ""
        self._making = anyio.Lock()

    async def prepare(self) -> None:
        """Have our layers and the box's Python ready. Raises BoxStartFailed."""
        async with self._making:
            if not self._has_layers:
                await anyio.to_thread.run_sync(self._make_layers)
                self._has_layers = True
            if self._closure is not None and await anyio.to_thread.run_sync(self._closure.is_dir):
                return
            if self._closure is not None:  # somebody has emptied the cache folder
                await self._spawner.run(partial(self._spawner.dismiss, self._closure))
                self._closure = None
            closure = await self._closures.get()
            self._admitted = await self._spawner.run(partial(self._spawner.admit, closure))
            self._closure = closure

    @property
    def closure(self) -> str:
        """Path of the box's Python, as bubblewrap can open it."""
        assert self._closure is not None
        return self._admitted

    def close(self) -> None:
        """Give up what is kept for further boxes; there are none left. Blocking, shortly."""
        self.ranges.close()
        self._closures.close()

    def layers(self, image: ImageRoot) -> tuple[Path, ...]:
        """Return all layers of a box of an image but its own, from the lowest up."""
        ours = self._shared / ("bare" if image.is_bare else "furnished")
        return (ours / "lacking", *image.layers, ours / "covering")

    def _make_layers(self) -> None:
        """Raises BoxStartFailed."""
        try:
            for kind, lacking, covering in (("furnished", _LACKING, _COVERING), ("bare", _TRUST, _NEEDED)):
                remove(self._shared / kind)
                self._make_folders(self._shared / kind / "lacking", lacking)
                self._make_folders(self._shared / kind / "covering", covering)
                self._make_files(self._shared / kind)
                for place in (self._shared / kind).glob("*/**/*"):
                    os.chown(place, self.ranges.own.user, self.ranges.own.group)
        except OSError as error:
            raise BoxStartFailed(f"the layers below images cannot be made: {error}") from error

    def _make_folders(self, layer: Path, folders: Iterable[str]) -> None:
        """Raises OSError."""
        for folder in folders:
            place = layer / folder[1:]
            place.mkdir(parents=True)
            place.chmod(_MODES.get(folder, 0o755))
        for above in (layer, *layer.glob("*")):
            above.chmod(_MODES.get(f"/{above.name}", 0o755))

    def _make_files(self, layers: Path) -> None:
        """Raises OSError."""
        etc = layers / "covering/etc"
        etc.mkdir()
        etc.chmod(0o755)
        for name in ("hosts", "hostname", "resolv.conf"):
            (etc / name).write_text(WRITTEN[name])
            (etc / name).chmod(0o644)
        certificates = next((place for place in _certificates() if place.is_file()), None)
        if certificates is not None:
            place = layers / f"lacking{_CERTIFICATES}"
            shutil.copyfile(certificates, place)
            place.chmod(0o644)
        if not self.ranges.own.is_whole:
            (etc / "apt/apt.conf.d").mkdir(parents=True)
            (etc / "apt/apt.conf.d/99one-user").write_text('APT::Sandbox::User "root";\n')


def _certificates() -> Iterable[Path]:
    """Return the files where this machine may have its trusted certificates, the user's choice first."""
    given = (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile)
    return map(Path, (*filter(None, given), _CERTIFICATES, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"))


def has_program(root: Path, name: str, path: str) -> bool:
    """Tell whether a program of that name is in the folders of a PATH of a box, whose links lead inside it only."""
    top = os.open(root, FOLDER)
    try:
        for folder in path.split(":"):
            with suppress(OSError):
                opened = open_inside(top, folder)
                try:
                    os.lstat(name, dir_fd=opened)
                finally:
                    os.close(opened)
                return True
        return False
    finally:
        os.close(top)


def make_folder(root: Path, path: str, owner: int) -> None:
    """Make the folder `path` of a box, and those above it, where links lead inside the box only.

    Raises OSError, and BoxStartFailed for a link to nowhere.
    """
    with ExitStack() as opened:
        top = above = os.open(root, FOLDER)
        opened.callback(os.close, top)
        for place in (*reversed(PurePosixPath(path).parents[:-1]), PurePosixPath(path)):
            try:
                above = open_inside(top, str(place))
            except FileNotFoundError:
                try:
                    _make_entry(above, place.name, owner, is_folder=True)
                except FileExistsError:
                    raise BoxStartFailed(
                        f"{place} is a link to nowhere in the image, and {path} is to be a folder"
                    ) from None
                above = open_inside(top, str(place))
            opened.callback(os.close, above)


def restore_folders(root: Path, owner: int) -> None:
    """Make the folders of our upper layer where a box has removed or replaced them. Raises OSError."""
    for path in _COVERING:
        with ExitStack() as opened:
            above = os.open(root, FOLDER)
            opened.callback(os.close, above)
            for name in PurePosixPath(path).parts[1:]:
                with suppress(FileNotFoundError):
                    if not stat.S_ISDIR(os.lstat(name, dir_fd=above).st_mode):
                        os.unlink(name, dir_fd=above)
                with suppress(FileExistsError):
                    _make_entry(above, name, owner, is_folder=True)
                above = os.open(name, FOLDER, dir_fd=above)
                opened.callback(os.close, above)
            if path in _MODES:
                os.chmod(f"/proc/self/fd/{above}", _MODES[path])  # noqa: PTH101


def leave_out(layer: Path, paths: Iterable[str]) -> None:
    """Remove paths of a box from the layer that it has written, whose links lead inside it only. Raises OSError."""
    with ExitStack() as opened:
        top = os.open(layer, FOLDER)
        opened.callback(os.close, top)
        for path in map(PurePosixPath, paths):
            with suppress(FileNotFoundError, NotADirectoryError):
                above = open_inside(top, str(path.parent))
                opened.callback(os.close, above)
                if stat.S_ISDIR(os.lstat(path.name, dir_fd=above).st_mode):
                    remove(Path(f"/proc/self/fd/{above}/{path.name}"))
                else:
                    os.unlink(path.name, dir_fd=above)


def restore_ids(root: Path, first: int) -> None:
    """Give a layer that a box has written the ids of images again; nothing writes it any more. Raises OSError.

    A change of owner takes a file's capabilities and its right to run as its owner, so both are set again. Folders that
    nest too deep for the walk are an OSError too.
    """
    for path, folders, files, folder in os.fwalk(root, follow_symlinks=False):
        if path.count("/") - str(root).count("/") > MAX_DEPTH:
            raise TooDeep
        for name in (*folders, *files, "."):
            found = os.lstat(name, dir_fd=folder)
            if not first <= found.st_uid < first + ID_COUNT and not first <= found.st_gid < first + ID_COUNT:
                continue  # a hard link to what was changed before
            place = f"/proc/self/fd/{folder}/{name}"
            capabilities = b""
            with suppress(OSError):
                capabilities = os.getxattr(place, _CAPABILITY, follow_symlinks=False)
            os.chown(name, found.st_uid - first, found.st_gid - first, dir_fd=folder, follow_symlinks=False)
            if found.st_mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=folder)
            if capabilities:
                # Without the id that they were limited to: see capabilities(7), versions 2 and 3.
                (word,) = struct.unpack_from("<I", capabilities)
                whole = struct.pack("<I", _VERSION_2 | word & 1) + capabilities[4:20]
                os.setxattr(place, _CAPABILITY, whole, follow_symlinks=False)


def make_mount_point(root: Path, bind: Bind, *, owner: int, gives_way: bool = False) -> list[str]:
    """Make the place of a bind in a box, and return the folders above it, the upper ones first.

    A link in its place gives way; if it `gives_way`, so does all that is in the way. Raises OSError, and BoxStartFailed
    for a link above it: bubblewrap would follow it.
    """
    *folders, name = PurePosixPath(bind.target).parts[1:]
    with ExitStack() as opened:
        above = os.open(root, FOLDER)
        opened.callback(os.close, above)
        for number, folder in enumerate(folders, start=1):
            if gives_way:
                _clear_way(above, folder, is_folder=True)
            with suppress(FileExistsError):
                _make_entry(above, folder, owner, is_folder=True)
            if stat.S_ISLNK(os.lstat(folder, dir_fd=above).st_mode):
                link = "/".join(("", *folders[:number]))
                raise BoxStartFailed(f"{link} is a link in the image, and {bind.target} has to be mounted there")
            above = os.open(folder, FOLDER, dir_fd=above)
            opened.callback(os.close, above)
        is_folder = bind.source.is_dir()
        if gives_way:
            _clear_way(above, name, is_folder=is_folder)
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(name, dir_fd=above).st_mode):
                os.unlink(name, dir_fd=above)
        with suppress(FileExistsError):
            _make_entry(above, name, owner, is_folder=is_folder)
    return ["/".join(folders[:number]) for number in range(1, len(folders) + 1)]


def _clear_way(folder: int, name: str, *, is_folder: bool) -> None:
    """Remove what is neither missing nor a folder, or a file, as it has to be. Raises OSError."""
    with suppress(FileNotFoundError):
        mode = os.lstat(name, dir_fd=folder).st_mode
        if not stat.S_ISDIR(mode) and (is_folder or not stat.S_ISREG(mode)):
            os.unlink(name, dir_fd=folder)
        elif stat.S_ISDIR(mode) and not is_folder:
            remove(Path(f"/proc/self/fd/{folder}/{name}"))


def _make_entry(folder: int, name: str, owner: int, *, is_folder: bool) -> None:
    """Make a folder or an empty file. Raises OSError."""
    if is_folder:
        os.mkdir(name, 0o755, dir_fd=folder)
    else:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder))
    os.chown(name, owner, owner, dir_fd=folder, follow_symlinks=False)
