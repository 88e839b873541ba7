"""Files that are written for a user, at a place of theirs."""

import os
import threading
from pathlib import Path

import pytest

from orchestrator.rundir.files import open_regular, write_atomically, write_where_told


def test_a_file_keeps_its_rights_and_a_link_its_target(tmp_path: Path) -> None:
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    write_where_told(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_where_told(pipe, b"x" * 100_000)
    reader.join(20)
    assert read == [b"x" * 100_000]
    assert pipe.is_fifo()


def test_what_a_stranger_left_in_the_way_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    (tmp_path / ".report.new").symlink_to(mine)
    write_atomically(tmp_path / "report", b"report")
    assert mine.read_bytes() == b"mine"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(mine)
    for strange in ("pipe", "link", "."):
        with pytest.raises(OSError, match=r"regular|symbolic"):
            open_regular(tmp_path / strange)
