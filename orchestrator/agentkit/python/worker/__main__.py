"""The start of a worker process: makes a package of this folder, and leaves the import path to the agent."""
# ruff: noqa: PTH118, PTH120  # importing pathlib would take longer than all this file does

import importlib.util
import os
import sys

PACKAGE = "_sweep_worker"


def main() -> None:
    """Load this folder as a package under a name nothing else has, and run it."""
    folder = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == folder:
        del sys.path[0]  # not the agent's: its modules have names like `supervisor`
    spec = importlib.util.spec_from_file_location(
        PACKAGE, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    importlib.import_module(PACKAGE + ".supervisor").main()


if __name__ == "__main__":
    main()
