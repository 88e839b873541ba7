"""Says how much room images want, before they are all here.

Its secret: what can be known soon. Images that are here have their sizes; of some of the others a registry is asked,
but not of many, since registries count what they are asked. What the commands of a Dockerfile leave is a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.to_thread import run_sync

from orchestrator.service.environments.build_outline import DockerfileError, Mistakes, Outline, parse
from orchestrator.service.environments.build_steps import FromImage
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.manifest import ImageError, ours
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.environments.images.room import UNPACKED

#: Seconds in which registries must answer, and images that they are asked for.
LOOK_S: Final = 3.0
MOST_ASKED: Final = 8


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


#: The text of a Dockerfile, and the values of its ARGs.
Recipe = tuple[str, Mapping[str, str]]


async def estimate(store: ImageStore, recipes: Mapping[Reference, Recipe]) -> RoomEstimate:
    """Estimate for images by the names that they get here. Raises OSError."""
    chains, missing, runs = set[str](), dict[Reference, list[Reference | None]](), 0
    for name, (text, arguments) in recipes.items():
        bases, commands = await run_sync(_read, text, arguments)
        found = await run_sync(store.find, name)
        if (
            found is None and len(bases) == 1 and bases[0] is not None and "\n" not in text.strip()
        ):  # it is no other image than that
            found = await run_sync(store.find, bases[0])
        if found is not None:
            chains.update(found.chains)
        else:
            missing[name] = bases
            runs += commands
    sizes: dict[str, int] = {}
    known = set[Reference | None]()
    with anyio.move_on_after(LOOK_S):
        asked = 0
        for base in dict.fromkeys(base for bases in missing.values() for base in bases if base is not None):
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
    return RoomEstimate(
        images=len(recipes),
        here=len(recipes) - len(missing),
        unknown=sum(not known.issuperset(bases) for bases in missing.values()),
        wanted=await run_sync(store.size, chains) + sum(sizes.values()) + runs * await run_sync(store.run_bytes),
        room=await run_sync(store.capacity),
    )


def _read(text: str, arguments: Mapping[str, str]) -> tuple[list[Reference | None], int]:
    """Return the images that a Dockerfile begins with, None for one that it does not tell, and how many RUNs it has.

    Blocking.
    """
    mistakes, bases, runs = Mistakes("Dockerfile"), list[Reference | None](), 0
    try:
        for stage in Outline(parse(text, mistakes), mistakes, str(ours()), arguments, {}).needed(None):
            runs += sum(each.name == "RUN" for each in stage.instructions)
            if isinstance(stage.base, FromImage):
                bases.append(Reference.parse(stage.base.reference))
    except (DockerfileError, BadReference):
        return [None], 0
    return bases, runs
