"""What holds for everybody unless a file says otherwise."""

import logging

DEFAULTS = {
    "name": "unnamed",
    "features": ["search"],
    "mail": {"from": "noreply@example.org", "footer": {"lines": ["Kind regards"], "logo": "default.png"}},
    "limits": {"users": 10, "storage_mb": 500},
    "logger": logging.getLogger("app"),
}
