"""Secrets out of everything we write: each byte of a value becomes a `*`, wherever the value turns up.

As many bytes as before, so that offsets, lengths and the columns of a log stay what they were. A value is looked for as
it is, line by line, and in the guises in which programs print what they were given: JSON, URLs, shells, Python, base64,
hexadecimal, UTF-16, in upper and in lower case. What is compressed or encrypted is beyond it.

A patch and a copy of a file are worth nothing if they are not as they were: for them there is a redactor that leaves
ordinary words alone, and counts what it masked.
"""

import base64
import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

from msgspec import structs

from orchestrator.core.errors import SweepError
from orchestrator.core.events import Event, Sink

#: Below this a value cannot be told from ordinary words.
MIN_BYTES: Final = 6
#: In a patch or a copy there must be more: a value with fewer characters, or one of letters only that has no more than
#: so many, is a word that anybody may write.
MIN_CHARACTERS_IN_FILES: Final = 8
MAX_WORD_CHARACTERS: Final = 12
_MASK: Final = b"*"
#: Offsets of a value in the groups of three bytes that base64 encodes.
_ALIGNMENTS: Final = range(3)


class Redactor:
    """Masks the values of `secrets`, which are pairs of a variable's name and its value.

    `mask`, `text` and `value` return a masked copy of their argument.
    """

    def __init__(self, secrets: Iterable[tuple[str, str]] = ()) -> None:
        self._known = frozenset(secrets)
        #: The variables whose values are too short to be masked.
        self.unmasked = sorted({name for name, value in self._known if 0 < len(_encoded(value)) < MIN_BYTES})
        #: Those whose values are ordinary words: they are masked in what is printed, and not in files.
        self.words = sorted({name for name, value in self._known if value and _is_word(value)} - {*self.unmasked})
        self._names = {guise: name for name, value in sorted(self._known) for guise in _guises(value)}
        self._guises = sorted(self._names, key=len, reverse=True)
        #: In small letters, for they are fewer; data without any of these has no guise that contains one. Those with a
        #: NUL are looked for only in data that has one.
        small = {guise.lower() for guise in self._guises}
        telling = [each for each in small if not any(other in each for other in small if other != each)]
        self._telling = [each for each in telling if 0 not in each]
        self._telling_wide = [each for each in telling if 0 in each]
        self._pattern = re.compile(b"|".join(map(re.escape, self._guises))) if self._names else None

    def for_files(self, own: Collection[bytes] = ()) -> "Redactor":
        """Return a redactor without values that are common words, or stand in one of the scenario's texts."""
        kept = [
            (name, value)
            for name, value in self._known
            if not (_is_word(value) or any(_encoded(value) in text for text in own))
        ]
        return self if len(kept) == len(self._known) else Redactor(kept)

    def without(self, names: Collection[str]) -> "Redactor":
        """Return a redactor without the values of these variables."""
        return Redactor(each for each in self._known if each[0] not in names) if names else self

    def shown(self, data: bytes) -> set[str]:
        """The variables whose values stand in `data` unchanged."""
        return {name for name, value in self._known if len(_encoded(value)) >= MIN_BYTES and _encoded(value) in data}

    def mask(self, data: bytes, masked: Counter[str] | None = None) -> bytes:
        """Mask whole values. Adds to `masked` how often, by the variable's name."""
        if self._pattern is None:
            return data
        small = data.lower()
        telling = (*self._telling, *self._telling_wide) if 0 in data else self._telling
        if not any(guise in small for guise in telling):
            return data

        def hide(found: re.Match[bytes]) -> bytes:
            if masked is not None:
                masked[self._names[found[0]]] += 1
            return _MASK * len(found[0])

        return self._pattern.sub(hide, data)

    def text(self, text: str) -> str:
        """A masked text that a journal can hold: half of a surrogate pair, which JSON can express, becomes a `?`."""
        if self._pattern is None and text.isascii():
            return text
        return self.mask(text.encode("utf-8", "replace")).decode("utf-8", "surrogatepass")

    def value(self, value: Any) -> Any:
        """A JSON-like value with all its strings masked, keys too; numbers and words of ours (enums) stay."""
        if type(value) is str:
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        return value

    def clean(self, error: SweepError) -> None:
        """Mask the message of an error."""
        error.args = tuple(map(self.value, error.args))

    def split(self, data: bytes) -> int:
        """The offset of the longest end of `data` that may be the beginning of a value; the length if there is none.

        More bytes would not change how `mask` masks the bytes before it.
        """
        first = len(data)
        for guise in self._guises:
            at = max(0, len(data) - len(guise) + 1)
            while 0 <= (at := data.find(guise[:1], at)) < first:
                if guise.startswith(data[at:]):
                    first = at
                at += 1
        return first

    def begun(self, data: bytes) -> str | None:
        """The variable whose value begins with `data`; None if there is none."""
        return next((self._names[guise] for guise in self._guises if guise.startswith(data)), None)

    def stream(self, masked: Counter[str] | None = None) -> "MaskingStream":
        """Return a masker for data that comes in pieces."""
        return MaskingStream(self, masked)


class MaskingStream:
    """Masks data that comes in pieces: the end of a piece that may be the beginning of a value waits for the next."""

    def __init__(self, redactor: Redactor, masked: Counter[str] | None = None) -> None:
        self._redactor = redactor
        self._masked = masked
        self._held = b""

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def feed(self, piece: bytes) -> bytes:
        data = self._held + piece
        # A value may end in what begins another one: only what is left after masking is held.
        masked = self._redactor.mask(data, self._masked)
        cut = self._redactor.split(masked)
        self._held = masked[cut:]
        return masked[:cut]

    def finish(self) -> bytes:
        """Flush held bytes; a truncated secret is masked too."""
        held, self._held = self._held, b""
        if len(held) < MIN_BYTES:
            return held
        if self._masked is not None and (name := self._redactor.begun(held)) is not None:
            self._masked[name] += 1
        return _MASK * len(held)


class MaskingSink:
    """A sink that masks secrets in the parts of events that others worded: failures, facts and results."""

    def __init__(self, sink: Sink, redactor: Redactor) -> None:
        self._sink = sink
        self._redactor = redactor

    async def append(self, *batch: Event) -> None:
        await self._sink.append(*map(self._masked, batch))

    def append_nowait(self, *batch: Event) -> None:
        self._sink.append_nowait(*map(self._masked, batch))

    async def wait_writable(self) -> None:
        await self._sink.wait_writable()

    def _masked(self, event: Event) -> Event:
        words = {name: each for name in _WORDS if (each := getattr(event, name, None)) is not None}
        masked = {name: self._redactor.value(each) for name, each in words.items()}
        return event if masked == words else structs.replace(event, **masked)


#: The fields of events that may quote an endpoint or an agent.
_WORDS: Final = ("failure", "facts", "result", "reason")


NO_SECRETS: Final = Redactor()


def _guises(value: str) -> Iterator[bytes]:
    plain = _encoded(value)
    if len(plain) < MIN_BYTES:
        return
    lines = [line.strip() for line in plain.splitlines()] if plain.strip().count(b"\n") else []
    for each in (plain, plain.strip(), *lines):
        if len(each) >= MIN_BYTES:
            yield each
            yield each.decode("utf-8", "replace").encode()  # as an endpoint hands it on that speaks of text only
            yield from (base64 for base64 in _base64s(each) if len(base64) >= MIN_BYTES)
            yield from (each.hex().encode(), each.hex().upper().encode())
            decoded = each.decode("utf-8", "replace")
            for text in (decoded, decoded.upper(), decoded.lower()):
                yield text.encode()
                yield from (text.encode("utf-16-le"), text.encode("utf-16-be"))

    # between the quotes of other languages
    text = plain.decode("utf-8", "replace")
    jsons = [json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]]
    jsons += [jsons[0].replace("/", "\\/"), json.dumps(jsons[0])[1:-1], json.dumps(jsons[1])[1:-1]]
    urls = [quote(plain, safe=safe) for safe in ("", "/")] + [quote_plus(plain)]
    urls += [re.sub("%..", lambda code: code[0].lower(), url) for url in urls]
    shells = [shlex.quote(text)[1:-1] if shlex.quote(text) != text else text, text.replace("'", "'\\''")]
    shells += [re.sub(r'(["\\$`])', r"\\\1", text), re.sub(r"([^\w@%+=:,./\n-])", r"\\\1", text)]
    pythons = [repr(text)[1:-1], repr(plain)[2:-1], ascii(text)[1:-1]]
    guises = (each.encode() for each in (*jsons, *urls, *shells, *pythons))
    yield from (guise for guise in guises if len(guise) >= MIN_BYTES)


def _is_word(value: str) -> bool:
    """Tell if `value` is a common word: a program's name, a placeholder, a yes or no."""
    is_plain = value.isalpha() and (value.islower() or value.isupper() or value.istitle())
    return len(value) < MIN_CHARACTERS_IN_FILES or (is_plain and len(value) <= MAX_WORD_CHARACTERS)


def _base64s(plain: bytes) -> Iterator[bytes]:
    """Parts of the base64 of `plain` that are independent of its neighbours, for each alignment."""
    for shift in _ALIGNMENTS:
        whole = (len(plain) + shift) // 3 * 3 - shift
        code = base64.b64encode(bytes(shift) + plain[:whole])[(shift * 8 + 5) // 6 :]
        yield code
        yield code.translate(bytes.maketrans(b"+/", b"-_"))


def _encoded(value: str) -> bytes:
    """The bytes of a value in the environment."""
    return value.encode("utf-8", "surrogateescape")
