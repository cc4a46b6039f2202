"""The echo of mosec's apps, with its own JSON; ECHO_JSON=orjson gives it faster JSON.

mosec's own JSON is the standard library's, indented. orjson is what a user writes who minds; zmesh takes it unasked
when it is installed, so both are measured.
"""

import os
from typing import Any

from mosec import Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


if os.environ.get("ECHO_JSON") == "orjson":
    import orjson

    class OrjsonEcho(Echo):
        def deserialize(self, data: bytes) -> Any:
            return orjson.loads(data) if data else {}

        def serialize(self, data: Any) -> bytes:
            return bytes(orjson.dumps(data))

    Echo = OrjsonEcho  # type: ignore[misc]
