"""The places of files that COPY copies: Docker's rules, and never outside the tree."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from orchestrator.service.content import listing
from orchestrator.service.diagnostics import Report
from orchestrator.service.environments.dockercopy import Context, Tree
from orchestrator.service.environments.dockerfile import Copy, read_dockerfile
from orchestrator.service.environments.dockerlines import Mistake

Write = Callable[[Path, Mapping[str, str]], Path]
FILES = {
    "a.txt": "a",
    "b.txt": "b",
    "notes.md": "n",
    "run.sh": "r",
    "src/main.py": "m",
    "src/deep/x.txt": "x",
    "src/deep/y.log": "y",
    ".env": "e",
}


def empty_tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "root")
    tree.root.mkdir()
    tree.make_folder("/app")
    return tree


@pytest.fixture
def place(tmp_path: Path, write: Write) -> Callable[..., dict[str, str]]:
    """Carries out the lines of a Dockerfile on an empty tree; returns its files."""

    def carry_out(lines: str, ignore: str = "", links: Mapping[str, str] | None = None) -> dict[str, str]:
        folder = write(tmp_path / "environment", FILES)
        for name, target in (links or {}).items():
            (folder / name).symlink_to(target)
        report = Report()
        recipe = read_dockerfile(f"FROM x\n{lines}\n", report)
        assert report.errors == []
        tree = Tree(tmp_path / "root")
        tree.root.mkdir()
        context = Context.of(listing(folder, folder), ignore=ignore)
        for step in recipe.steps:
            if isinstance(step, Copy):
                tree.copy(step, context)
            else:
                tree.make_folder(getattr(step, "path", "/app"))
        return {
            path.relative_to(tree.root).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_text()
            for path in sorted(tree.root.rglob("*"))
            if path.is_symlink() or path.is_file()
        }

    return carry_out


Place = Callable[..., dict[str, str]]


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("COPY a.txt new.txt", {"app/new.txt": "a"}),
        ("COPY a.txt new/", {"app/new/a.txt": "a"}),
        ("COPY a.txt .", {"app/a.txt": "a"}),
        ("WORKDIR /app/there\nCOPY a.txt /app/there", {"app/there/a.txt": "a"}),
        ("COPY a.txt b.txt /data/", {"data/a.txt": "a", "data/b.txt": "b"}),
        ("COPY *.txt /data/", {"data/a.txt": "a", "data/b.txt": "b"}),
        ("COPY ?.md* n[^a]tes.m? /data/", None),
        ("COPY n[^a]tes.m? /data/", {"data/notes.md": "n"}),
        ("COPY src /data", {"data/main.py": "m", "data/deep/x.txt": "x", "data/deep/y.log": "y"}),
        ("COPY src/ /data/", {"data/main.py": "m", "data/deep/x.txt": "x", "data/deep/y.log": "y"}),
        ("COPY /src/deep/*.txt ./", {"app/x.txt": "x"}),
        ("COPY s* /data/", {"data/main.py": "m", "data/deep/x.txt": "x", "data/deep/y.log": "y"}),
        ("COPY a.txt x\nCOPY b.txt x", {"app/x": "b"}),
        ("COPY <<EOF /data/\nhi\nEOF", {"data/EOF": "hi\n"}),
    ],
)
def test_sources_and_targets_mean_what_docker_means(place: Place, lines: str, files: dict[str, str] | None) -> None:
    if files is None:
        with pytest.raises(Mistake, match=r"\?\.md\* is not in environment/"):
            place(lines)
    else:
        assert place(lines) == files


def test_a_dot_is_everything_hidden_files_included(place: Place) -> None:
    assert place("COPY . .") == {f"app/{name}": content for name, content in FILES.items()}


def test_modes_follow_the_executable_bit_or_the_flag(place: Place, tmp_path: Path) -> None:
    place("COPY run.sh a.txt /app/\nCOPY --chmod=640 b.txt /data/b\n")
    modes = [
        (tmp_path / "root" / name).stat().st_mode & 0o777 for name in ("app/run.sh", "app/a.txt", "data/b", "data")
    ]
    assert modes == [0o755, 0o644, 0o640, 0o755]


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ("*.txt", {"notes.md", "run.sh", "src/main.py", "src/deep/x.txt", "src/deep/y.log", ".env"}),
        ("**/*.txt\n*.log", {"notes.md", "run.sh", "src/main.py", "src/deep/y.log", ".env"}),
        ("src", {"a.txt", "b.txt", "notes.md", "run.sh", ".env"}),
        ("/src/*\n!src/deep\n# comment\n\n*.txt", {"notes.md", "run.sh", "src/deep/x.txt", "src/deep/y.log", ".env"}),
        ("*\n!run.sh", {"run.sh"}),
    ],
)
def test_dockerignore_leaves_files_out(place: Place, ignore: str, left: set[str]) -> None:
    assert set(place("COPY . .", ignore)) == {f"app/{name}" for name in left}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("COPY nothing .", "nothing is not in environment/"),
        ("COPY *.txt /data", "the target must end with /"),
        ("COPY a.txt /top.txt", "a file directly in / is not possible"),
        ("COPY a.txt x\nCOPY src x", "/app/x is a file"),
        ("WORKDIR /app/x\nCOPY src/deep /app/y\nWORKDIR /app/y/x.txt", "is a file"),
    ],
)
def test_a_copy_that_cannot_be_placed_is_a_mistake(place: Place, lines: str, why: str) -> None:
    with pytest.raises(Mistake, match=why):
        place(lines)


def test_a_file_that_is_ignored_cannot_be_copied_by_name(place: Place) -> None:
    with pytest.raises(Mistake, match=r"a\.txt is not in environment/, or is left out by \.dockerignore"):
        place("COPY a.txt .", "a.txt")


def test_links_are_kept_in_folders_and_followed_when_named(place: Place) -> None:
    links = {"src/link": "deep/x.txt", "alias": "a.txt"}
    assert place("COPY src /s\nCOPY src/link alias /n/", links=links) == {
        "s/main.py": "m",
        "s/deep/x.txt": "x",
        "s/deep/y.log": "y",
        "s/link": "deep/x.txt",
        "n/x.txt": "x",
        "n/alias": "a",
    }


@pytest.mark.parametrize("target", ["/etc", "../../../../../../etc", "/app/../etc"])
def test_a_link_in_the_tree_never_leads_out_of_it(tmp_path: Path, write: Write, target: str) -> None:
    """A command of the Dockerfile made the link; the copy after it would write to this machine's /etc."""
    folder = write(tmp_path / "environment", FILES)
    tree = empty_tree(tmp_path)
    (tree.root / "app" / "out").symlink_to(target)
    step = Copy(line=3, text="", sources=("a.txt",), target="/app/out", is_folder=True)
    with pytest.raises(Mistake, match="leads to /etc"):
        tree.copy(step, Context.of(listing(folder, folder)))


def test_a_link_in_the_tree_is_followed_from_the_trees_root(tmp_path: Path, write: Write) -> None:
    folder = write(tmp_path / "environment", FILES)
    tree = empty_tree(tmp_path)
    (tree.root / "app" / "data").symlink_to("/srv/data")
    (tree.root / "app" / "file").symlink_to("/nowhere")
    context = Context.of(listing(folder, folder))
    tree.copy(Copy(line=1, text="", sources=("a.txt",), target="/app/data", is_folder=True), context)
    assert (tree.root / "srv" / "data" / "a.txt").read_text() == "a"


def test_links_in_a_circle_are_a_mistake(tmp_path: Path) -> None:
    tree = empty_tree(tmp_path)
    (tree.root / "app" / "x").symlink_to("/app/y")
    (tree.root / "app" / "y").symlink_to("/app/x")
    with pytest.raises(Mistake, match="too many links"):
        tree.make_folder("/app/x/z")
