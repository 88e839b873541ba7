"""Layers for tests, in memory."""

import gzip
import io
import tarfile
from collections.abc import Mapping

import zstandard

KINDS = {
    "f": tarfile.REGTYPE,
    "d": tarfile.DIRTYPE,
    "l": tarfile.SYMTYPE,
    "h": tarfile.LNKTYPE,
    "c": tarfile.CHRTYPE,
    "p": tarfile.FIFOTYPE,
}


def entry(
    name: str,
    kind: str = "f",
    data: bytes = b"",
    *,
    to: str = "",
    mode: int | None = None,
    owner: int = 0,
    pax: Mapping[str, str] | None = None,
    device: tuple[int, int] = (0, 0),
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry; `kind` is f(ile), d(irectory), l(ink), h(ard link), c(haracter device) or p(ipe)."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = KINDS[kind], to, len(data)
    info.mode = (0o755 if kind == "d" else 0o644) if mode is None else mode
    info.uid = info.gid = owner
    info.mtime = 1_000_000_000
    info.pax_headers = dict(pax or {})
    info.devmajor, info.devminor = device
    return info, data


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return file.getvalue()


def packed(data: bytes, how: str) -> bytes:
    """The layer as `gzip`, `zstd` or `plain` blob."""
    if how == "plain":
        return data
    return gzip.compress(data) if how == "gzip" else zstandard.compress(data)
