"""The address of a service as its state folder has it, and the proof that who listens there knows its token.

The file may outlive a service that was killed, and another program may have its port by then: who reads it has the
listener prove itself, by `/v1/sweep/proof`, before it sends the token.
"""

import hmac
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

import orjson

ADDRESS: Final = "address.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The place where a service listens, the token that it expects, and its process."""

    url: str
    token: str
    instance: str
    pid: int

    @classmethod
    def read(cls, state: Path) -> Self | None:
        """Read the address in a state folder; None if there is none, or one that cannot be understood. Blocking."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            told = orjson.loads((state / ADDRESS).read_bytes())
            url, token, instance = (str(told[key]) for key in ("url", "token", "instance"))
            return cls(url=url, token=token, instance=instance, pid=int(told["pid"]))
        return None


def proof(token: str, nonce: str) -> str:
    """HMAC-SHA256 of the nonce with the token as key, in hexadecimal: only a holder of the token can say it."""
    return hmac.new(token.encode(), nonce.encode(), sha256).hexdigest()
