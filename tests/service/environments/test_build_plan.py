"""What a Dockerfile means: stages, steps with their variables filled in, and the lines that are refused."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.service.environments.build_context import BuildContext
from orchestrator.service.environments.build_outline import DockerfileError
from orchestrator.service.environments.build_plan import plan, plan_text
from orchestrator.service.environments.build_steps import (
    DEFAULT_PATH,
    BaseImage,
    BuildPlan,
    BuildStage,
    BuildStep,
    CopyStep,
    FetchStep,
    FolderStep,
    FromContext,
    FromImage,
    FromNothing,
    FromStage,
    RunStep,
    StageConfig,
    TextFile,
)

AMD64 = "linux/amd64"
SHA256 = "sha256:" + "0" * 64


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., BuildPlan]:
    """Plan a text, with files of these names beside it."""

    def read(
        text: str,
        *files: str,
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
        images: Mapping[str, BaseImage] | None = None,
        platform: str = AMD64,
    ) -> BuildPlan:
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        (tmp_path / "Dockerfile").write_text(text)
        return plan(
            tmp_path / "Dockerfile", tmp_path, platform=platform, build_args=build_args, target=target, images=images
        )

    return read


Read = Callable[..., BuildPlan]


def steps(stage: BuildStage) -> list[BuildStep]:
    return [step for layer in stage.layers for step in layer.steps]


def runs(planned: BuildPlan) -> list[RunStep]:
    return [step for stage in planned.stages for step in steps(stage) if isinstance(step, RunStep)]


def copies(planned: BuildPlan) -> list[CopyStep]:
    return [step for stage in planned.stages for step in steps(stage) if isinstance(step, CopyStep)]


def refused(read: Read, text: str, *files: str) -> str:
    with pytest.raises(DockerfileError) as caught:
        read(text, *files)
    return str(caught.value)


# stages


def test_only_the_stages_that_the_target_needs_are_planned_and_in_the_order_of_their_needs(read: Read) -> None:
    text = (
        "FROM a AS tools\nRUN one\n"
        "FROM b AS unused\nRUN two\n"
        "FROM scratch AS final\nCOPY --from=tools /x /x\nCOPY --from=2 /self /\n"
    )
    assert "from=2: a stage cannot copy from itself" in refused(read, text)
    planned = read(text.replace("COPY --from=2 /self /\n", "COPY --from=later /y /\n") + "FROM c AS later\nRUN three\n")
    assert [stage.name for stage in planned.stages] == ["later"]
    planned = read((text + "FROM c AS later\n").replace("--from=2 /self", "--from=LATER /y"), target="final")
    assert sorted(stage.name for stage in planned.stages) == ["final", "later", "tools"]
    assert planned.target.name == "final"
    assert planned.images == (
        FromImage(reference="a", platform=AMD64),
        FromImage(reference="c", platform=AMD64),
    )


def test_a_stage_may_stand_on_another_and_inherits_its_variables_and_its_configuration(read: Read) -> None:
    planned = read(
        'FROM a AS one\nARG X=1\nENV Y=2\nWORKDIR /w\nUSER me\nCMD ["c"]\nFROM ONE AS two\nRUN echo\nENTRYPOINT e\n'
    )
    one, two = planned.stages
    assert two.base == FromStage(number=0)
    assert {**runs(planned)[0].environment} == {"PATH": DEFAULT_PATH, "X": "1", "Y": "2"}
    assert (runs(planned)[0].cwd, runs(planned)[0].user) == ("/w", "me")
    assert (one.config.command, two.config.command) == (("c",), None)
    assert two.config.entrypoint == ("/bin/sh", "-c", "e")
    assert dict(two.config.environment) == {"PATH": DEFAULT_PATH, "Y": "2"}


def test_from_takes_images_scratch_and_platforms(read: Read) -> None:
    planned = read(
        "ARG TAG=12\nFROM --platform=$BUILDPLATFORM debian:${TAG} AS a\n"
        "FROM scratch\nCOPY --from=host:5000/x@sha256:1 / /\nCOPY --from=a / /\n",
        platform="linux/arm64/v8",
    )
    assert planned.stages[0].base == FromImage(reference="debian:12", platform="linux/arm64/v8")
    assert planned.target.base == FromNothing()
    assert [each.reference for each in planned.images] == ["debian:12", "host:5000/x@sha256:1"]


def test_the_target_is_the_last_stage_or_that_of_a_name_or_a_number(read: Read, tmp_path: Path) -> None:
    text = "FROM a AS x\nFROM b AS y\n"
    assert [read(text, target=target).target.name for target in (None, "X", "0", "1")] == ["y", "x", "x", "y"]
    with pytest.raises(DockerfileError, match=r"Dockerfile:1: there is no stage z to build; accepted: x, y, 0, 1"):
        read(text, target="z")


# variables


def test_an_argument_of_before_from_counts_after_it_only_when_it_is_declared_again(read: Read) -> None:
    planned = read("ARG V=3.11\nFROM a\nENV BEFORE=$V\nARG V\nENV AFTER=$V\nRUN x\n")
    assert planned.target.config.environment["BEFORE"] == ""
    assert planned.target.config.environment["AFTER"] == "3.11"


def test_arguments_come_from_the_build_then_from_the_line_then_from_before_from(read: Read) -> None:
    text = "ARG A=head B=head\nFROM a\nARG A=line\nARG B\nARG C=line\nARG D\nRUN x\n"
    environment = dict(runs(read(text, build_args={"C": "build", "E": "unasked"}))[0].environment)
    assert environment == {"PATH": DEFAULT_PATH, "A": "line", "B": "head", "C": "build"}


def test_what_a_build_knows_of_its_platform_is_there_when_it_is_declared(read: Read) -> None:
    planned = read("FROM a\nARG TARGETARCH TARGETPLATFORM\nRUN x\n", platform="linux/arm64")
    assert runs(planned)[0].environment["TARGETARCH"] == "arm64"
    assert "TARGETOS" not in runs(planned)[0].environment


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("$A", "one"),
        ("${A}s", "ones"),
        (r"${NONE:-x\ y}", "x y"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${A:+x}", "x"),
        ("${NONE:+x}", ""),
        ("${NONE:-${A:-z}}", "one"),
        ("${FILE%.*}", "a.tar"),
        ("${FILE%%.*}", "a"),
        ("${FILE#*.}", "tar.gz"),
        ("${FILE//a/b}", "b.tbr.gz"),
        (r"\$A", "$A"),
        ("'$A'", "$A"),
        ('"$A b"', "one b"),
        ("$NONE", ""),
    ],
)
def test_variables_are_filled_in_as_by_docker(read: Read, word: str, value: str) -> None:
    planned = read(f"FROM a\nENV A=one EMPTY= FILE=a.tar.gz\nENV Y={word}\n")
    assert planned.target.config.environment["Y"] == value


def test_a_line_of_env_sees_the_values_of_before_it(read: Read) -> None:
    planned = read("FROM a\nENV A=1\nENV A=2 B=$A\nENV OLD the old  form\n")
    assert {**planned.target.config.environment} == {"PATH": DEFAULT_PATH, "A": "2", "B": "1", "OLD": "the old  form"}


def test_commands_are_left_to_their_shell(read: Read) -> None:
    planned = read('FROM a\nENV A=1\nRUN echo $A "${B}"\nRUN ["echo", "$A"]\nSHELL ["/bin/bash", "-ec"]\nRUN x\n')
    assert [run.argv for run in runs(planned)] == [
        ("/bin/sh", "-c", 'echo $A "${B}"'),
        ("echo", "$A"),
        ("/bin/bash", "-ec", "x"),
    ]


# what is known of a base


def test_a_base_that_is_known_gives_its_configuration_and_its_onbuild_lines(read: Read) -> None:
    config = StageConfig(
        environment={"PATH": "/opt/bin", "HOME": "/h"},
        working_directory="/srv",
        user="app",
        shell=("/bin/bash", "-c"),
        command=("old",),
        on_build=("COPY . /src/", "RUN make -C $HOME", 'ENV BUILT="yes it is"'),
    )
    text = "FROM base\nENV PATH=/mine:$PATH\nRUN x\n"
    planned = read(text, "a.txt", images={"base": BaseImage(digest="sha256:1", config=config)})
    assert [type(step).__name__ for step in steps(planned.target)] == ["CopyStep", "RunStep", "RunStep"]
    assert {step.line for step in steps(planned.target)[:2]} == {1}
    last = runs(planned)[-1]
    assert (last.argv, last.cwd, last.user) == (("/bin/bash", "-c", "x"), "/srv", "app")
    assert dict(last.environment) == {"PATH": "/mine:/opt/bin", "HOME": "/h", "BUILT": "yes it is"}
    assert (planned.target.config.command, planned.target.config.on_build) == (("old",), ())


def test_onbuild_is_kept_for_children_and_carried_out_in_a_stage_on_top(read: Read) -> None:
    planned = read("FROM a AS parent\nONBUILD RUN one\nRUN two\nFROM parent\nRUN three\n")
    assert planned.stages[0].config.on_build == ("RUN one",)
    assert [run.argv[-1] for run in runs(planned)] == ["two", "one", "three"]
    assert "Dockerfile:2: ONBUILD: expected one instruction" in refused(read, "FROM a\nONBUILD FROM b\n")


# commands


def test_here_documents_are_scripts_of_the_shell_or_of_the_program_they_name(read: Read) -> None:
    planned = read(
        "FROM a\nRUN <<EOF\necho $A\n  two\nEOF\nRUN <<-END\n\t#!/usr/bin/env python3\n\tprint(1)\nEND\n"
        "RUN cat > a << 'X' && cat <<Y\nx\nX\ny\nY\n"
    )
    first, second, third = runs(planned)
    assert first.argv[-1] == "echo $A\n  two\n"
    assert second.argv[-1] == "/run/scripts/END"
    assert second.files == (TextFile(name="/run/scripts/END", text="#!/usr/bin/env python3\nprint(1)\n"),)
    assert third.argv[-1] == "cat > a << 'X' && cat <<Y\nx\nX\ny\nY"


def test_mounts_and_networks_of_a_command(read: Read) -> None:
    planned = read(
        "FROM a AS tools\nFROM b\nWORKDIR /w\nENV ID=pip\n"
        "RUN --mount=type=cache,id=$ID,target=/c,sharing=locked,uid=7,mode=0700 "
        "--mount=source=src,dst=in,rw --mount=from=tools,target=/t --mount=type=tmpfs,target=/tmp,size=64m "
        "--mount=type=secret,id=key,required --mount=type=secret,id=token,env=TOKEN --network=none x\n",
        "src/a.txt",
    )
    cache, bind, tools, memory, key, token = runs(planned)[0].mounts
    assert (cache.kind, cache.id, cache.target, cache.sharing) == ("cache", "pip", "/c", "locked")
    assert (cache.uid, cache.mode, cache.is_read_only) == (7, 0o700, False)
    assert (bind.origin, bind.target, bind.is_read_only) == (FromContext(), "/w/in", False)
    assert [path for path, _ in bind.source.files] == ["a.txt"]
    assert (tools.origin, tools.source.path, tools.is_read_only) == (FromStage(number=0), "/", True)
    assert (memory.kind, memory.size_bytes) == ("tmpfs", 64 << 20)
    assert (key.id, key.target, key.is_required) == ("key", "/run/secrets/key", True)
    assert (token.variable, token.target) == ("TOKEN", "")
    assert runs(planned)[0].network == "none"
    assert [stage.name for stage in planned.stages] == ["tools", ""]


# copies


def test_copies_name_the_files_they_read_and_where_these_go(read: Read) -> None:
    planned = read(
        "FROM a\nWORKDIR /w\nCOPY a.txt b.txt\nCOPY a.txt src ./\nCOPY src /s\n"
        "COPY *.txt /t\nCOPY no*.md src/x.md /u/\n",
        "a.txt",
        "b.txt",
        "src/x.md",
        "src/deep/y.md",
    )
    renamed, several, folder, pattern, nothing = copies(planned)
    assert (renamed.target, [path for path, _ in renamed.sources[0].files]) == ("/w/b.txt", ["a.txt"])
    assert not renamed.sources[0].is_folder
    assert (several.target, [source.is_folder for source in several.sources]) == ("/w/", [False, True])
    assert [path for path, _ in folder.sources[0].files] == ["deep", "deep/y.md", "x.md"]
    assert (pattern.target, [path for path, _ in pattern.sources[0].files]) == ("/t/", ["a.txt", "b.txt"])
    assert [len(source.files) for source in nothing.sources] == [0, 1]


def test_flags_of_a_copy(read: Read) -> None:
    planned = read(
        "FROM a\nARG WHO=me\nCOPY --chown=$WHO:1 --chmod=u+x,go-w --link --exclude=**/*.log --exclude=tmp src /s/\n"
        "COPY --parents src/./deep/y.md src/*.md /p/\n",
        *("src/x.md", "src/deep/y.md", "src/deep/z.log", "src/tmp/t"),
    )
    first, second = copies(planned)
    assert (first.owner, first.mode, first.is_linked) == ("me:1", "u+x,go-w", True)
    assert [path for path, _ in first.sources[0].files] == ["deep", "deep/y.md", "x.md"]
    assert [path for source in second.sources for path, _ in source.files] == ["deep/y.md", "src/x.md"]


def test_files_may_stand_in_the_dockerfile(read: Read) -> None:
    planned = read("FROM a\nENV A=1\nCOPY <<one.txt <<'two.txt' a.txt /x/\n\"$A\"\none.txt\n$A\ntwo.txt\n", "a.txt")
    assert copies(planned)[0].texts == (TextFile(name="one.txt", text='"1"\n'), TextFile(name="two.txt", text="$A\n"))
    assert len(copies(planned)[0].sources) == 1


def test_add_unpacks_archives_and_fetches_addresses(read: Read) -> None:
    planned = read(
        f"FROM a\nADD a.tgz /x/\nADD --unpack=false a.tgz /y/\nADD --checksum={SHA256} https://h.test/f.bin /z\n"
        "ADD --keep-git-dir https://h.test/r.git#main /r\nADD --unpack https://h.test/f.tgz a.tgz /m/\n",
        "a.tgz",
    )
    assert [step.is_unpacking for step in copies(planned)] == [True, False, True]
    fetches = [step for step in steps(planned.target) if isinstance(step, FetchStep)]
    assert [(step.checksum, step.is_git, step.keeps_git_folder, step.is_unpacking) for step in fetches] == [
        (SHA256, False, False, False),
        ("", True, True, False),
        ("", False, False, True),
    ]


def test_a_dockerignore_leaves_files_out_and_that_of_the_dockerfile_comes_first(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("# notes\n*.log\n!keep.log\nDockerfile\n.dockerignore\n")
    names = ["a.log", "keep.log", "b.txt"]
    copied = copies(read("FROM a\nCOPY . /x/\n", *names))[0].sources[0].files
    assert [path for path, _ in copied] == ["b.txt", "keep.log"]
    assert "a.log is left out by .dockerignore" in refused(read, "FROM a\nCOPY a.log /x/\n")
    (tmp_path / "Dockerfile.dockerignore").write_text("*\n!b.txt\n")
    assert [path for path, _ in copies(read("FROM a\nCOPY . /x/\n"))[0].sources[0].files] == ["b.txt"]
    (tmp_path / "Dockerfile.dockerignore").write_text("[z-a]\n")
    assert refused(read, "FROM a\n").startswith("Dockerfile.dockerignore:1: the pattern [z-a] is not valid")


def test_a_link_is_followed_when_a_source_names_it_and_copied_as_it_is_when_not(read: Read, tmp_path: Path) -> None:
    (tmp_path / "now").symlink_to("releases/2")
    (tmp_path / "host").symlink_to("/etc/passwd")
    planned = read("FROM a\nCOPY now /x/\nCOPY . /all/\n", "releases/2/a.txt")
    named, everything = copies(planned)
    assert [path for path, _ in named.sources[0].files] == ["a.txt"]
    links = {path: node.target for path, node in everything.sources[0].files if node.kind == "link"}
    assert links == {"now": "releases/2", "host": "/etc/passwd"}
    assert "host is a link to etc, which is not in the context" in refused(read, "FROM a\nCOPY host /x/\n")


# configuration


def test_the_last_word_of_each_instruction_is_the_configuration(read: Read) -> None:
    planned = read(
        'FROM a\nARG PORT=80\nMAINTAINER me\nLABEL a=1 b="x y"\nVOLUME /data /more\n'
        "EXPOSE $PORT 53/UDP 127.0.0.1:80:8000-8010\n"
        'VOLUME ["/with space"]\nSTOPSIGNAL sigint\nUSER app:app\nENTRYPOINT ["/e"]\nCMD serve $X\n'
        "HEALTHCHECK --interval=1m30s --timeout=5s --retries=2 CMD curl localhost\nWORKDIR /w\nWORKDIR rel/../x\n"
    )
    config = planned.target.config
    assert dict(config.labels) == {"a": "1", "b": "x y"}
    assert config.ports == ("80/tcp", "53/udp", "8000-8010/tcp")
    assert config.volumes == ("/data", "/more", "/with space")
    assert (config.stop_signal, config.user, config.working_directory) == ("SIGINT", "app:app", "/w/x")
    assert (config.entrypoint, config.command) == (("/e",), ("/bin/sh", "-c", "serve $X"))
    assert config.healthcheck is not None
    assert (config.healthcheck.command, config.healthcheck.interval) == ("curl localhost", 90.0)
    assert (config.healthcheck.timeout, config.healthcheck.retries) == (5.0, 2)
    assert [step.path for step in steps(planned.target) if isinstance(step, FolderStep)] == ["/w", "/w/x"]
    assert {step.owner for step in steps(planned.target) if isinstance(step, FolderStep)} == {"app:app"}


# keys


def test_spelling_lines_and_times_decide_no_key(read: Read, tmp_path: Path) -> None:
    first = read("FROM a\nENV A=1 B=2\nCOPY ./src/ /x/\nRUN make\n", "src/a.txt")
    (tmp_path / "src/a.txt").touch()
    second = read("# words\nfrom a\n\nENV B=2\nENV A=1\n# more\ncopy src /x/\nWORKDIR /\nrun   make\n", "src/a.txt")
    assert first.target.key == second.target.key


@pytest.mark.parametrize(
    "changed",
    [
        "FROM b\nENV A=1\nCOPY src /x/\nRUN make\n",
        "FROM a\nENV A=2\nCOPY src /x/\nRUN make\n",
        "FROM a\nENV A=1\nARG B=2\nCOPY src /x/\nRUN make\n",
        "FROM a\nENV A=1\nCOPY src /y/\nRUN make\n",
        "FROM a\nENV A=1\nCOPY --chown=1 src /x/\nRUN make\n",
        "FROM a\nENV A=1\nCOPY src /x/\nUSER me\nRUN make\n",
        "FROM a\nENV A=1\nCOPY src /x/\nWORKDIR /x\nRUN make\n",
        'FROM a\nENV A=1\nCOPY src /x/\nSHELL ["/bin/bash", "-c"]\nRUN make\n',
        "FROM a\nENV A=1\nCOPY src /x/\nRUN --network=none make\n",
        "FROM a\nENV A=1\nCOPY src /x/\nRUN --mount=target=/m make\n",
        "FROM a\nENV A=1\nCOPY src /x/\nRUN make all\n",
    ],
)
def test_all_that_a_command_sees_decides_its_key(read: Read, changed: str) -> None:
    before = read("FROM a\nENV A=1\nCOPY src /x/\nRUN make\n", "src/a.txt")
    assert read(changed).target.key != before.target.key


def test_contents_names_and_modes_of_files_decide_the_key_of_what_copies_them(read: Read, tmp_path: Path) -> None:
    text = "FROM a\nRUN one\nCOPY src /x/\nRUN two\n"
    keys: list[list[str]] = []
    for change in (
        lambda: None,
        lambda: (tmp_path / "src/a.txt").write_text("else"),
        lambda: (tmp_path / "src/a.txt").chmod(0o755),
        lambda: (tmp_path / "src/a.txt").rename(tmp_path / "src/b.txt"),
        lambda: (tmp_path / "other").write_text("not copied"),
    ):
        if not keys:
            read(text, "src/a.txt")
        change()
        (tmp_path / "Dockerfile").write_text(text)
        keys.append([layer.key for layer in plan(tmp_path / "Dockerfile", tmp_path, platform=AMD64).target.layers])
    assert len({first for first, *_ in keys}) == 1
    assert len({tuple(each) for each in keys[:4]}) == 4
    assert keys[3] == keys[4]


def test_a_stage_and_a_known_image_decide_the_keys_of_what_reads_them(read: Read) -> None:
    text = "FROM a AS x\nRUN {}\nFROM b\nCOPY --from=x /f /f\n"
    assert read(text.format("one")).target.key != read(text.format("two")).target.key
    known = {"b": BaseImage(digest="sha256:1", config=StageConfig())}
    newer = {"b": BaseImage(digest="sha256:2", config=StageConfig())}
    assert read("FROM b\nRUN x\n", images=known).target.key != read("FROM b\nRUN x\n", images=newer).target.key


def test_copies_and_folders_in_a_row_are_one_layer(read: Read) -> None:
    planned = read("FROM a\nWORKDIR /w\nCOPY a.txt .\nENV A=1\nADD a.txt /b\nRUN x\nRUN y\nCOPY a.txt /c\n", "a.txt")
    assert [len(layer.steps) for layer in planned.target.layers] == [3, 1, 1, 1]


def test_the_same_chain_in_two_folders_has_the_same_keys_as_far_as_it_goes(read: Read, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "Dockerfile").write_text("FROM a\nRUN one\nRUN two\nRUN three\n")
    first = read("FROM a\nRUN one\nRUN two\nRUN else\n").target.layers
    second = plan(other / "Dockerfile", other, platform=AMD64).target.layers
    assert [a.key == b.key for a, b in zip(first, second, strict=True)] == [True, True, False]


# mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Dockerfile:1: has no FROM: begin with FROM IMAGE"),
        ("RUN x\nFROM a\n", "Dockerfile:1: RUN: stands before the first FROM"),
        ("FROM a\nRUNN x\n", "Dockerfile:2: unknown instruction RUNN; did you mean RUN?"),
        ("FROM a\nZZZ x\n", "Dockerfile:2: unknown instruction ZZZ; accepted: ADD, ARG, "),
        ("FROM a b\n", "Dockerfile:1: FROM: expected FROM IMAGE or FROM IMAGE AS NAME"),
        ("FROM a AS 1st\n", "1st is no name for a stage"),
        ("FROM a AS x\nFROM 0\n", "Dockerfile:2: FROM: 0 is no image: give the stage a name"),
        ("ARG X\nFROM $X\n", "Dockerfile:2: FROM: $X is empty: give ARG a default"),
        ("FROM --platform=amd64 a\n", "--platform=amd64: expected an operating system and an architecture"),
        ("FROM a\nCOPY --from=3 a b\n", "from=3: there is no such stage; they have the numbers 0 to 0"),
        ("FROM a\nCOPY --from=$X a b\n", "from=$X: variables do not count here; name a stage"),
        ("FROM a\nCOPY --owner=x a b\n", "unknown flag --owner; accepted: --from, --chown"),
        ("FROM a\nCOPY --chwn=x a b\n", "unknown flag --chwn; did you mean chown?"),
        ("FROM a\nRUN --security=insecure x\n", "unknown flag --security; accepted: --mount, --network"),
        ("FROM a\nWORKDIR --x /a\n", "unknown flag --x; it has none"),
        ("FROM a\nCOPY --link=maybe a b\n", "--link: maybe is neither true nor false"),
        ("FROM a\nCOPY --chown=a --chown=b a b\n", "--chown is there twice"),
        ("FROM a\nCOPY --chmod=999 Dockerfile b\n", "--chmod=999: expected an octal number such as 755"),
        ("FROM a\nCOPY x\n", "COPY: expected a source and a target"),
        ("FROM a\nCOPY missing.txt /x/\n", "Dockerfile:2: COPY: missing.txt is not in the context; commit it"),
        ("FROM a\nCOPY Dockerfil /x/\n", "Dockerfil is not in the context; did you mean Dockerfile?"),
        ("FROM a\nCOPY ../x /x/\n", "../x leads out of the context"),
        ("FROM a\nCOPY https://h.test/a /x/\n", "https://h.test/a is an address: use ADD for it"),
        ("FROM a\nADD --checksum=sha256:1 https://h.test/a /x\n", "expected sha256: and 64 digits"),
        ("FROM a\nADD --checksum=sha256:1 Dockerfile /x\n", "--checksum is for one source that is an address"),
        ("FROM a\nRUN\n", "Dockerfile:2: RUN: it needs something after it"),
        ('FROM a\nRUN [""]\n', "the program's name is empty"),
        ("FROM a\nRUN [1]\n", "Only strings are supported in JSON arrays"),
        ("FROM a\nRUN <<EOF\nx\n", "Dockerfile:2: the here-document has no end"),
        ("FROM a\nRUN --mount=type=ssh x\n", "type=ssh: accepted: bind, cache, tmpfs, secret"),
        ("FROM a\nRUN --mount=type=cache x\n", "expected target=FOLDER"),
        ("FROM a\nRUN --mount=type=cache,target=/x/.. x\n", "target: expected a folder below /"),
        ("FROM a\nRUN --mount=typ=cache x\n", "unknown key typ; did you mean type?"),
        ("FROM a\nRUN --mount=target=/x,size=1m x\n", "size is not for type=bind"),
        ("FROM a\nRUN --mount=type=tmpfs,target=/x,size=much x\n", "size: expected a size such as 64m"),
        ("FROM a\nRUN --network=mine x\n", "--network=mine: accepted: default, none, host"),
        ("FROM a\nENV A\n", "Dockerfile:2: ENV must have two arguments"),
        ("FROM a\nENV A=1 b\n", "Must be of the form: name=value"),
        ("FROM a\nENV A=${B\n", "Dockerfile:2: ENV: ${B: syntax error: missing '}'"),
        ("FROM a\nENV A=${B:?needed}\n", "B: needed"),
        ("FROM a\nSHELL /bin/bash -c\n", 'expected ["program", "argument", …]'),
        ("FROM a\nEXPOSE web\n", "web is no port"),
        ("FROM a\nSTOPSIGNAL -\n", "- is no signal"),
        ("FROM a\nHEALTHCHECK curl x\n", "expected HEALTHCHECK CMD COMMAND"),
        ("FROM a\nHEALTHCHECK --interval=soon CMD x\n", "--interval=soon: expected a duration such as 30s"),
        (
            "FROM a AS x\nCOPY --from=y a b\nFROM b AS y\nCOPY --from=x a b\n",
            "the stage needs itself, by way",
        ),
        ("FROM a\nRUN \0\n", "Dockerfile:2: has a character NUL"),
        ("# escape=^\nFROM a\n", "invalid escape token '^'"),
    ],
)
def test_a_line_that_cannot_be_carried_out_is_named_with_what_is_accepted(read: Read, text: str, message: str) -> None:
    assert message in refused(read, text)


def test_all_mistakes_are_found_at_once(read: Read) -> None:
    with pytest.raises(DockerfileError) as caught:
        read("FROM a\nCOPY x /y/\nRUN ok\nEXPOSE z\nUSER ${A:?who}\n")
    assert [line for line, _ in caught.value.mistakes] == [2, 4, 5]


def test_what_a_stage_that_is_not_needed_copies_need_not_be_there(read: Read) -> None:
    assert read("FROM a AS docs\nCOPY missing /x\nFROM b\n").target.number == 1


def test_a_file_that_cannot_be_read_is_a_mistake_too(read: Read, tmp_path: Path) -> None:
    (tmp_path / "Latin").write_bytes(b"FROM a\nRUN caf\xe9\n")
    with pytest.raises(DockerfileError, match="Latin:1: is not UTF-8 text"):
        plan(tmp_path / "Latin", tmp_path, platform=AMD64)
    with pytest.raises(DockerfileError, match="None:1: cannot be read: No such file"):
        plan(tmp_path / "None", tmp_path, platform=AMD64)
    planned = plan_text("FROM a\n", BuildContext.read(tmp_path), file="x", platform=AMD64)
    assert planned.target.layers == ()
    context = BuildContext.read(tmp_path)
    (tmp_path / "Latin").unlink()
    with pytest.raises(DockerfileError, match=r"x:3: .*/Latin cannot be read: No such file"):
        plan_text("FROM a\n\nCOPY Latin /x/\n", context, file="x", platform=AMD64)


def test_a_device_or_a_pipe_is_refused_when_it_is_copied(read: Read, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read("FROM a\nCOPY a.txt /x/\n", "a.txt").images
    assert "pipe is no file, folder or link: remove it" in refused(read, "FROM a\nCOPY . /x/\n")


@pytest.mark.parametrize(
    "lines",
    [
        "ENV A=0123456789\n" + "ENV A=$A$A\n" * 100,
        "ENV A=" + "a" * 100_000 + "\nENV B=${A//a/" + "b" * 100_000 + "}\n",
        "ENV A=" + "a" * 1000 + "\nENV B=${A##*a*a*a*a*a*b}\n",
        "RUN x\n" * 2000,
        "ENV A=" + "${A:-" * 20_000 + "}" * 20_000 + "\n",
        "COPY " + "* " * 900 + "/x/\n",
    ],
    ids=["doubling", "replacing", "stars", "many lines", "nested", "sources"],
)
def test_a_page_of_text_takes_neither_hours_nor_all_memory(read: Read, lines: str) -> None:
    started = time.process_time()
    with suppress(DockerfileError):
        read(f"FROM a\n{lines}")
    assert time.process_time() - started < 5


def test_a_message_is_short_however_long_the_words_and_the_list_of_mistakes(read: Read) -> None:
    assert len(refused(read, "FROM a\n" + f"COPY {'x' * 1000} /y/\n" * 900)) < 5000


def test_hundreds_of_stages_on_top_of_each_other_are_planned(read: Read) -> None:
    text = "FROM a AS s0\n" + "".join(f"FROM s{number} AS s{number + 1}\n" for number in range(900))
    assert len(read(text).stages) == 901
