"""A journal that is behind the endpoint: cut at every line of a real run, the rest is found out, not done again."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from .conftest import Ground, Story, Sweep, Undisturbed
from .witness import remains, sweep_id


@pytest.mark.slow
def test_a_journal_cut_at_any_line_gives_the_same_results(ground: Ground) -> None:
    """The service has scored the trial: the score is taken, and no agent works again."""
    story = Story(words=(*ground.agent, "--limit", "1"))
    known = ground.undisturbed(story)
    whole = ground.sweep(story)
    assert whole.problems(known, whole.run()) == [], str(whole)
    before = remains(whole.state, sweep_id(whole.run_folder), story.words_of_agents)
    wrong = {}
    for last_line, sweep in cut_at_each_line(ground, whole):
        expected = known if knows_gathered(sweep) else without_what_came_home(known)
        problems = sweep.problems(expected, sweep.run(), spoilt=sum(before.agents.values()))
        after = remains(whole.state, sweep_id(whole.run_folder), story.words_of_agents)
        if problems or after.agents != before.agents:
            wrong[last_line] = [*problems, f"agents worked again: {after.agents - before.agents}", str(sweep)]
        before = after
    assert not wrong, "\n".join(f"cut behind {line}: {problems}" for line, problems in wrong.items())


def knows_gathered(sweep: Sweep) -> bool:
    events = map(json.loads, (sweep.run_folder / "journal.jsonl").read_bytes().splitlines())
    return any(event["event"] == "stage.finished" and event["stage"] == "gather" for event in events)


def without_what_came_home(known: Undisturbed) -> Undisturbed:
    """A devbox that was scored has the scorers' files in it: nothing of it comes home, and every result says so."""
    results = [{**each, "flags": ["gather_incomplete"], "brought": {}} for each in known.results]
    return replace(known, status=1, results=results)


def cut_at_each_line(ground: Ground, whole: Sweep) -> Iterator[tuple[str, Sweep]]:
    lines = (whole.run_folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):  # one that lost its first line, too, is refused
        sweep = ground.sweep(whole.story)
        shutil.copytree(whole.run_folder, sweep.run_folder)
        (sweep.run_folder / "journal.jsonl").write_bytes(b"".join(lines[:count]))
        (sweep.run_folder / "results.jsonl").unlink()  # with results that the journal has not it would be refused
        yield lines[count - 1][:100].decode(), sweep
