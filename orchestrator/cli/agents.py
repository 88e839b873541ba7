"""`sweep agents`: who there is to do the work."""

from typing import Annotated

import typer

from orchestrator.cli.options import EnvFileOption, JsonOption, PythonOption

app = typer.Typer(help="Who there is to do the work.", no_args_is_help=True)


@app.command("list")
def list_(*, json: JsonOption = False) -> None:
    """List the agents that have a name: yours in ./agents, and the built-in ones."""
    from orchestrator.commands import agents

    agents.list_agents(as_json=json)


@app.command("show")
def show(
    agent: Annotated[str, typer.Argument(metavar="NAME", help="A name, NAME@VERSION, or the path of a .toml.")],
    *,
    python: PythonOption = None,
    env_file: EnvFileOption = None,
    json: JsonOption = False,
) -> None:
    """Explain an agent: what is run, what it needs, and whether that is here. No value of a variable is shown."""
    from orchestrator.cli.launch import variables_of
    from orchestrator.commands import agents

    agents.show(agent, python=python, given=variables_of(env_file), as_json=json)


@app.command("new")
def new(name: Annotated[str, typer.Argument(help="What it is to be called.")]) -> None:
    """Write ./agents/NAME.toml, a template that says what an agent file can say."""
    from orchestrator.commands import agents

    agents.new(name)
