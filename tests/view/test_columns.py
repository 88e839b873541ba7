"""The columns of exports."""

from typing import Any

from orchestrator.view.columns import columns


def test_names_that_tests_give_their_rewards_cannot_hide_in_a_table() -> None:
    """Neither control characters nor marks that turn the direction of text: a terminal would obey them."""
    row: dict[str, Any] = {
        "failure": None,
        "attempts": [],
        "stages": {},
        "usage": {},
        "files": {},
        "rewards": {"speed": 0.5, "\x1b]0;mine\x07\u202e": 1.0},
    }
    names = [name for name in columns([row]) if name.startswith("reward_")]
    assert names == ["reward_speed", "reward_\\x1b]0;mine\\x07\\u202e"]
