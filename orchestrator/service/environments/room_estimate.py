"""Says how much room images want, before they are all here.

Its secret: what can be known soon. Images that are here have their sizes; of some of the others a registry is asked,
but not of many, since registries count what they are asked. What the commands of a Dockerfile leave is a guess.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.to_thread import run_sync

from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.manifest import ImageError, ours
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.environments.images.room import UNPACKED

#: Seconds in which registries must answer, and images that they are asked for.
LOOK_S: Final = 3.0
MOST_ASKED: Final = 8
_RUN: Final = re.compile(r"^\s*RUN\b", re.IGNORECASE | re.MULTILINE)
_FROM: Final = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*([^\s$]+)(?:\s+AS\s+(\S+))?\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomEstimate:
    """Of so many `images`, `here` are here, and of `unknown` nobody knows the size; `wanted` and `room` in bytes.

    `wanted` is for all together, as far as they are known, and `room` is what they may take.
    """

    images: int = 0
    here: int = 0
    unknown: int = 0
    wanted: int = 0
    room: int = 0


async def estimate(store: ImageStore, recipes: Mapping[Reference, str]) -> RoomEstimate:
    """Estimate for images by the names that they get here, with the texts of their Dockerfiles. Raises OSError."""
    chains, missing = set[str](), dict[Reference, list[Reference]]()
    for name, text in recipes.items():
        bases = _bases(text)
        found = await run_sync(store.find, name)
        if found is None and len(bases) == 1 and "\n" not in text.strip():  # it is no other image than that
            found = await run_sync(store.find, bases[0])
        if found is not None:
            chains.update(found.chains)
        else:
            missing[name] = bases
    sizes: dict[str, int] = {}
    known = set[Reference]()
    with anyio.move_on_after(LOOK_S):
        asked = 0
        for base in dict.fromkeys(base for bases in missing.values() for base in bases):
            if (image := await run_sync(store.find, base)) is not None:
                chains.update(image.chains)
                known.add(base)
            elif asked < MOST_ASKED:
                asked += 1
                try:
                    _, manifest = await store.registries.manifest(base, ours())
                except ImageError:
                    continue
                sizes |= {blob.digest: blob.size * UNPACKED for blob in manifest.layers}
                known.add(base)
    runs = sum(len(_RUN.findall(recipes[name])) for name in missing)
    commands = runs * await run_sync(store.run_bytes)
    return RoomEstimate(
        images=len(recipes),
        here=len(recipes) - len(missing),
        unknown=sum(not known.issuperset(bases) for bases in missing.values()),
        wanted=await run_sync(store.size, chains) + sum(sizes.values()) + commands,
        room=await run_sync(store.capacity),
    )


def _bases(text: str) -> list[Reference]:
    """Return the images that a Dockerfile begins with, as far as they are plain to see."""
    stages, found = {"scratch"}, []
    for base, stage in _FROM.findall(text):
        if base.lower() not in stages:
            try:
                found.append(Reference.parse(base))
            except BadReference:
                continue
        stages.add(stage.lower())
    return found
