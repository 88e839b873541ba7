import argparse
import json
import sys
from pathlib import Path

from tinytpl import MissingValue, TemplateError, render


def main() -> int:
    parser = argparse.ArgumentParser(prog="tinytpl")
    parser.add_argument("template", type=Path)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    try:
        text = render(given.template.read_text(encoding="utf-8"), json.loads(given.data.read_text(encoding="utf-8")))
    except (MissingValue, TemplateError) as error:
        print(f"tinytpl: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(text)
    return 0


sys.exit(main())
