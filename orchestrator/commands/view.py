"""`sweep view`: the page of sweeps, on this machine."""

import gc
import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import uvicorn

from orchestrator.core.errors import UsageError
from orchestrator.rundir.files import MANIFEST
from orchestrator.view.console import say
from orchestrator.view.web.site import LOOPBACK, application

#: The port where none is asked for, so that links stay the same from day to day; any free one if it is taken.
PORT: Final = 8701
#: The variable with the token of links, where it is to stay the same; and its fewest characters.
VARIABLE: Final = "SWEEP_VIEW_TOKEN"
MIN_TOKEN: Final = 16
#: When the collector looks for cycles: a long sweep is a million objects that stay, and looking through them again and
#: again as they are read takes as long as reading.
RARELY: Final = (200_000, 20, 100)
#: Time that open pages get at the end.
_LAST_REPLIES_S: Final = 1


def run(folder: Path, *, port: int | None) -> None:
    """Serve the page of a runs folder, or of a sweep and its neighbours, until a signal.

    `port` is None for the usual one. Raises UsageError for a folder that is not there, and for a port that is taken.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: name a folder of sweeps, or a sweep.")
    runs, page = folder, "/"
    if (folder / MANIFEST).is_file():
        runs, page = folder.resolve().parent, f"/sweep/{quote(folder.resolve().name)}/"
    token = os.environ.get(VARIABLE) or secrets.token_urlsafe(MIN_TOKEN)
    if len(token) < MIN_TOKEN:
        raise UsageError(f"{VARIABLE} has {len(token)} characters, which can be guessed: take at least {MIN_TOKEN}.")
    gc.set_threshold(*RARELY)
    with _listen(port) as listener:
        number = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                application(runs, token, number),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=_LAST_REPLIES_S,
            )
        )
        say(f"http://{LOOPBACK[0]}:{number}{page}?token={quote(token, safe='')}")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _listen(port: int | None) -> socket.socket:
    for candidate in (PORT, 0) if port is None else (port,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK[0], candidate))
            listener.listen()
        except OSError as error:
            listener.close()
            if candidate == port:
                raise UsageError(f"--port {port}: {error.strerror}. Choose another, or leave it out.") from None
        else:
            return listener
    raise UsageError("No port is free on this machine.")
