"""What a job asks of the server's site, as one text that FLARE hands on as it was submitted.

FLARE replaces `{NAME}` in all texts of a job's configuration, and `{$NAME}` by what the environment of the site's
process says: a recipe's template would change on its way, and a job could carry the server's secrets home with its run.
"""

import base64
import hashlib
import json
from typing import Any


def sealed(name: object, tree: object) -> str:
    """A run's name and its settings as a digest and letters that hold nothing to replace."""
    body = base64.b64encode(json.dumps({"name": name, "config": tree}).encode()).decode()
    return f"{_digest(body)}.{body}"


def opened(order: object) -> tuple[Any, Any]:
    """What a job has sealed as name and settings, whatever that is; nothing of an order that isn't as it was sealed."""
    digest, _, body = order.partition(".") if isinstance(order, str) else ("", "", "")
    try:
        if digest != _digest(body):
            raise ValueError
        found = json.loads(base64.b64decode(body, validate=True))
        return found["name"], found["config"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, None


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode(errors="replace")).hexdigest()
