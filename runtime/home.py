"""A home for who has none: the SDK asks for one as it is imported, and a container's user may be a number alone.

To be imported before all else. Read next: `process.py`.
"""

from __future__ import annotations

import os

if os.path.expanduser("~") == "~":
    os.environ["HOME"] = "/nonexistent"
