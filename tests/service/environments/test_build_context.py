"""The files of a build: what patterns leave out, and what sources mean among them."""

import time
from pathlib import Path

import pytest
from e2b_dockerfile_utils import PatternMatcher
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.service.content import Contents, listing
from orchestrator.service.environments.build_context import BuildContext, NotInContextError, Patterns

NAMES = st.sampled_from(["a", "b", "ab", "a.txt", "x.log"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
GLOBS = st.sampled_from(["*", "**", "a*", "*.log", "?", "[ab]", "[^a]", "a", "b", "ab", "x.log", "*b*"])
LINES = st.tuples(st.sampled_from(["", "!", "/"]), st.lists(GLOBS, min_size=1, max_size=3).map("/".join)).map("".join)


@settings(max_examples=1000, deadline=None)
@given(st.lists(LINES, max_size=5), PATHS)
@example(["**", "!a/**/x.log"], "a/b/x.log")
@example(["a", "!a/b"], "a/b/ab")
@example(["a/**"], "a")
@example(["?/*b*", "![ab]/[ab]/**", "**/b"], "b/b/a")
def test_patterns_mean_what_they_mean_for_docker(lines: list[str], path: str) -> None:
    assert Patterns(lines).match(path) == PatternMatcher(lines).matches(path)


def test_comments_blanks_and_slashes_around_a_pattern_do_not_count() -> None:
    patterns = Patterns(["# a", "", "  ./b/  ", "/c"])
    assert [patterns.match(path) for path in ("a", "b", "b/x", "c", "x/c")] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("line", "members"),
    [
        ("[[]", "["),
        ("[&&]", "&"),
        (r"[\]]", "]"),
        ("[a||b]", "a|"),
        ("[~~x]", "~"),
        ("[+--]", "-,"),
        ("[^a-~]", "[&-],"),
    ],
)
def test_a_class_of_characters_has_ranges_and_nothing_else(line: str, members: str) -> None:
    assert [each for each in "[&-a|]~," if Patterns([line]).match(each)] == list(members)


@pytest.mark.parametrize(("line", "why"), [("!", "names nothing"), ("[z-a]", "is not valid"), ("a**b**c**", "** more")])
def test_a_pattern_that_means_nothing_is_refused(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("*", r"\*")):
        Patterns([line])


@pytest.mark.parametrize(("pattern", "name"), [("*a" * 40 + "b", "a" * 250), ("**/a/" * 40 + "b", "a/" * 30 + "c")])
def test_patterns_with_many_stars_are_matched_in_no_time(pattern: str, name: str) -> None:
    started = time.process_time()
    assert not Patterns([pattern]).match(name)
    assert time.process_time() - started < 1


def test_thousands_of_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 1,000 patterns"):
        Patterns(["a"] * 1001)


def test_a_file_that_is_taken_back_in_comes_with_the_folders_it_is_in(tmp_path: Path) -> None:
    for name in ("src/deep/a.txt", "src/b.txt", "other/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    context = BuildContext.read(tmp_path, ignore="*\n!src/deep/a.txt\n")
    assert [path for path, _ in context.select(".").files] == ["src", "src/deep", "src/deep/a.txt"]
    assert context.select("src/deep/a.txt").files
    for source in ("src/b.txt", "other", "other/c.txt"):
        with pytest.raises(NotInContextError, match=r"is left out by \.dockerignore"):
            context.select(source)


def test_names_above_the_folder_and_links_out_of_it_lead_back_into_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "deep/up").symlink_to("../../../../a.txt")
    (tmp_path / "root").symlink_to("/a.txt")
    context = BuildContext.read(tmp_path)
    for source in ("a.txt", "../../a.txt", "/a.txt", "deep/../a.txt", "deep/up", "root"):
        assert [node.place for _, node in context.select(source).files] == [str(tmp_path / "a.txt")]


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(NotInContextError, match="leads through more than 40 others"):
        BuildContext.read(tmp_path).select("a")


def test_a_listing_made_for_others_serves_as_well_and_names_may_be_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "setup.sh").write_text("b")
    context = BuildContext(listing(tmp_path, tmp_path), Contents(), without={"setup.sh"})
    assert [path for path, _ in context.select(".").files] == ["a.txt"]
    with pytest.raises(NotInContextError, match=r"setup\.sh is not in the context"):
        context.select("setup.sh")


def test_a_name_that_is_not_utf8_is_refused_when_it_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "caf\udce9").write_text("b")
    (tmp_path / "link").symlink_to("caf\udce9")
    context = BuildContext.read(tmp_path)
    assert context.select("a.txt").files
    with pytest.raises(NotInContextError, match="link is a link to a name that is not UTF-8"):
        context.select("link")
    with pytest.raises(NotInContextError, match=r"caf\\xe9 has a name that is not UTF-8"):
        context.select(".")
