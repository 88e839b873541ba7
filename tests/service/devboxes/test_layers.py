"""Layers of an image are seen through each other as the kernel's overlay shows them."""

import os
from pathlib import Path

import pytest

from orchestrator.service.devboxes.layers import Layers

WHITEOUT = 0o020000


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    """Three layers, the highest with a removed file, a folder that begins anew, and a file in a folder's place."""
    files = {
        "low": ("a/kept", "a/removed", "a/changed", "anew/old", "was-folder/x", "deep/er/one"),
        "middle": ("a/changed", "anew/older", "deep/er/two"),
        "high": ("anew/new", "was-folder"),
    }
    for layer, paths in files.items():
        for path in paths:
            (tmp_path / layer / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / layer / path).write_text(layer)
    (tmp_path / "high/a").mkdir()
    os.mknod(tmp_path / "high/a/removed", WHITEOUT, 0)
    try:
        os.setxattr(tmp_path / "high/anew", "user.overlay.opaque", b"y")
    except OSError as error:
        pytest.skip(f"no attributes of users here: {error}")
    (tmp_path / "low/link").symlink_to("a")
    return Layers([tmp_path / name for name in ("high", "middle", "low")])


def seen(layers: Layers, path: str) -> str | None:
    found = layers.find(path)
    return None if found is None else found[0].name


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("a/kept", "low"),
        ("a/removed", None),
        ("a/changed", "middle"),
        ("anew/old", None),
        ("anew/new", "high"),
        ("was-folder", "high"),
        ("was-folder/x", None),
        ("deep/er/one", "low"),
        ("deep/er/two", "middle"),
        ("link", "low"),
        ("link/kept", None),
        ("none/at/all", None),
        ("a/" + "x" * 5000, None),
    ],
)
def test_a_path_is_found_in_the_layer_that_shows_it(layers: Layers, path: str, layer: str | None) -> None:
    assert seen(layers, path) == layer


def test_a_walk_yields_what_is_seen_and_nothing_twice(layers: Layers) -> None:
    assert [path for path, _ in layers.walk("")] == [
        *("a", "a/changed", "a/kept", "anew", "anew/new", "was-folder"),
        *("deep", "deep/er", "deep/er/two", "deep/er/one", "link"),
    ]
    assert list(layers.walk("was-folder")) == list(layers.walk("nowhere")) == []
