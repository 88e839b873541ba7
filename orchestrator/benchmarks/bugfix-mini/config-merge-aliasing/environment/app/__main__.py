"""The command line."""

import json
import sys

from .loader import load


def main(arguments):
    if len(arguments) < 2 or arguments[0] not in {"show", "features"}:
        print("usage: python3 -m app show|features TENANT...", file=sys.stderr)
        return 2
    command, *tenants = arguments
    loaded = {tenant: load(tenant) for tenant in tenants}
    for tenant, settings in loaded.items():
        if command == "features":
            print(f"{tenant}: {', '.join(settings.get('features', []))}")
        else:
            print(json.dumps(settings.as_dict(), indent=2, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
