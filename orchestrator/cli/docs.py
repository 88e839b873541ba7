"""`sweep docs`: the manual."""

from typing import Annotated

import typer


def docs(
    context: typer.Context,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="A topic. Omit it to list all topics.")] = None,
) -> None:
    """Show the manual: the list of topics, or one topic.

    The text is laid out on a terminal, and is plain Markdown elsewhere.

    Examples:
      sweep docs

      sweep docs getting-started

      sweep docs commands >commands.md

    """
    from orchestrator.commands import docs

    docs.show(topic, commands=context.find_root().command)
