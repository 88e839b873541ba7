"""A token server for a registry: it sells tokens for a name and a password, as those of the large hubs do.

Its secret: the token, a JSON Web Token (RFC 7519) signed by `openssl` with a key of its own. It carries the certificate
that the registry trusts.
"""

import base64
import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

import pytest
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

SERVICE: Final = "registry of the tests"
ISSUER: Final = "token server of the tests"
USER: Final = "ann"
PASSWORD: Final = "pass:word"
#: What a login is exchanged for by `docker login` at hubs that know it.
IDENTITY_TOKEN: Final = "an-identity-token"
#: Everybody may pull what is below this name.
PUBLIC: Final = "public/"
_LIFETIME_S: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenServer:
    """Its key and certificate are in the folder `place`."""

    place: Path

    @classmethod
    def make(cls, place: Path) -> Self:
        """Make a key and a certificate; skips the test where there is no openssl."""
        if shutil.which("openssl") is None:
            pytest.skip("a token server needs openssl (Debian package openssl)")
        place.mkdir()
        made = cls(place=place)
        made._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"),
            *("-keyout", str(place / "key.pem"), "-out", str(made.certificate)),
        )
        return made

    @property
    def certificate(self) -> Path:
        return self.place / "certificate.pem"

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/token", self._answer, methods=["GET", "POST"])])

    def settings(self, realm: str) -> dict[str, object]:
        """The part of a registry's configuration that sends its visitors to the address `realm`."""
        certificate = str(self.certificate)
        return {"token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": certificate}}

    def authorization(self, name: str) -> str:
        """The header with which a repository is pushed to. Blocking."""
        return f"Bearer {self.token(name, 'pull', 'push')}"

    def token(self, name: str, *actions: str, lifetime_s: int = _LIFETIME_S) -> str:
        """Return a token for what may be done with the repository of this name. Blocking."""
        now = int(time.time())
        (der,) = re.findall(r"-----BEGIN CERTIFICATE-----(.+?)-----END", self.certificate.read_text(), re.DOTALL)
        head = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(der.split())]}
        claims = {
            "iss": ISSUER,
            "sub": USER,
            "aud": SERVICE,
            "jti": uuid4().hex,
            "iat": now,
            "nbf": now - _LIFETIME_S,
            "exp": now + lifetime_s,
            "access": [{"type": "repository", "name": name, "actions": actions}] if actions else [],
        }
        signed = f"{_encoded(json.dumps(head).encode())}.{_encoded(json.dumps(claims).encode())}"
        signature = self._openssl("dgst", "-sha256", "-sign", str(self.place / "key.pem"), given=signed.encode())
        return f"{signed}.{_encoded(signature)}"

    async def _answer(self, request: Request) -> Response:
        """Answer with a token for all that the asker may do, which can be nothing; 401 for a wrong login."""
        asked: dict[str, Any] = {**request.query_params, **(await request.form())}
        given = request.headers.get("authorization", "").removeprefix("Basic ")
        is_known = asked.get("refresh_token") == IDENTITY_TOKEN
        if given or "refresh_token" in asked:
            is_known |= base64.b64decode(given) == f"{USER}:{PASSWORD}".encode()
            if not is_known:
                return JSONResponse({"details": "incorrect username or password"}, 401)
        if asked.get("service") != SERVICE:
            return JSONResponse({"details": "no service of ours"}, 400)
        _, name, actions = asked["scope"].split(":")
        allowed = actions.split(",") if is_known else ["pull"] if name.startswith(PUBLIC) else []
        token = await run_sync(lambda: self.token(name, *allowed))
        return JSONResponse({"access_token" if request.method == "POST" else "token": token})

    @staticmethod
    def _openssl(*words: str, given: bytes = b"") -> bytes:
        return subprocess.run(["openssl", *words], input=given, capture_output=True, check=True).stdout


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
