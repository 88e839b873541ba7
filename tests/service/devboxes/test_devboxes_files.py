"""Files of devboxes, through the published client."""

from typing import TYPE_CHECKING

import pytest
from runloop_api_client import BadRequestError, NotFoundError

if TYPE_CHECKING:
    from tests.service.devboxes.conftest import Served

pytestmark = pytest.mark.anyio


async def test_text_that_is_written_is_read_again_from_the_home_of_the_user(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_known")
    text = "zwölf\r\nlines 'and' \"quotes\" $HOME\n"
    written = await served.client.devboxes.write_file_contents(devbox.id, file_path="new/-dir/f.txt", contents=text)
    assert (written.devbox_id, written.exit_status, written.stdout, written.stderr) == (devbox.id, 0, "", "")
    assert await served.client.devboxes.read_file_contents(devbox.id, file_path="/home/user/new/-dir/f.txt") == text


async def test_bytes_of_any_size_go_in_and_come_out(served: "Served") -> None:
    devbox = await served.devbox()
    data = bytes(range(256)) * 40_000
    await served.client.devboxes.upload_file(devbox.id, path="big.bin", file=data)
    response = await served.client.devboxes.download_file(devbox.id, path="/home/user/big.bin")
    assert await response.read() == data
    assert response.headers["content-type"] == "application/octet-stream"


async def test_an_empty_file_is_an_empty_file(served: "Served") -> None:
    devbox = await served.devbox()
    await served.client.devboxes.upload_file(devbox.id, path="empty", file=b"")
    assert await (await served.client.devboxes.download_file(devbox.id, path="empty")).read() == b""
    assert await served.client.devboxes.read_file_contents(devbox.id, file_path="empty") == ""


@pytest.mark.parametrize("path", ["missing", "/tmp"])
async def test_a_file_that_cannot_be_read_is_refused_in_the_devboxs_words(served: "Served", path: str) -> None:
    devbox = await served.devbox()
    said = "No such file or directory|Is a directory|is a directory|error reading"
    with pytest.raises(BadRequestError, match=said):
        await served.client.devboxes.read_file_contents(devbox.id, file_path=path)
    with pytest.raises(BadRequestError, match=said):
        await served.client.devboxes.download_file(devbox.id, path=path)


async def test_a_file_that_cannot_be_written_is_refused_in_the_devboxs_words(served: "Served") -> None:
    devbox = await served.devbox()
    with pytest.raises(BadRequestError, match=r"Is a directory|cannot create"):
        await served.client.devboxes.write_file_contents(devbox.id, file_path="/tmp", contents="x")
    with pytest.raises(BadRequestError, match=r"Is a directory|cannot create"):
        await served.client.devboxes.upload_file(devbox.id, path="/tmp", file=b"x" * (1 << 20))


async def test_a_file_that_is_no_text_is_for_download(served: "Served") -> None:
    devbox = await served.devbox()
    await served.client.devboxes.upload_file(devbox.id, path="b", file=b"\xff\x00")
    with pytest.raises(BadRequestError, match="not UTF-8 text; use download_file"):
        await served.client.devboxes.read_file_contents(devbox.id, file_path="b")


async def test_files_are_of_running_devboxes_only(served: "Served") -> None:
    devbox = await served.devbox()
    await served.client.devboxes.shutdown(devbox.id)
    with pytest.raises(BadRequestError, match="is shutdown, not running"):
        await served.client.devboxes.read_file_contents(devbox.id, file_path="x")
    with pytest.raises(NotFoundError):
        await served.client.devboxes.read_file_contents("dbx_none", file_path="x")
