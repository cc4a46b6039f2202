"""What `--compression` costs: milliseconds of a core for 10 MiB, by level. Run it as `python -m benchmarks.codings`."""

from __future__ import annotations

import json
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from random import Random

from zmesh.codings import GZIP_LEVEL, GZIP_WBITS, ZSTD_LEVEL, zstd

SIZE = 10 * 1024 * 1024
ROUNDS = 5


def bodies() -> Iterator[tuple[str, bytes]]:
    dice = Random(0)
    rows = ({"id": id, "name": f"user {dice.randrange(10**6)}", "score": dice.random()} for id in range(SIZE // 50))
    yield "JSON records", json.dumps(list(rows)).encode()[:SIZE]
    yield "random floats", b"".join(struct.pack("<f", dice.gauss(0, 1)) for _ in range(SIZE // 4))
    yield "zeros", bytes(SIZE)


def milliseconds(work: Callable[[], object]) -> float:
    """Of this process's own time; the median of the rounds."""
    spent = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return statistics.median(spent) * 1000


def row(name: str, coding: str, level: int, size: int, packed: bytes, pack: float, unpack: float) -> str:
    ours = " *" if level == (GZIP_LEVEL if coding == "gzip" else ZSTD_LEVEL) else ""
    return f"{name:<14} {coding} {level}{ours:<3} {pack:8.1f} {unpack:8.1f} {100 * len(packed) / size:8.1f}"


def main() -> int:
    print(f"{'10 MiB of':<14} coding      pack   unpack  size\n{'':<14} (* ours)      ms       ms     %")
    for name, body in bodies():
        for level in (1, 6):
            packed = zlib.compress(body, level, GZIP_WBITS)
            pack = milliseconds(lambda body=body, level=level: zlib.compress(body, level, GZIP_WBITS))
            unpack = milliseconds(lambda packed=packed: zlib.decompress(packed, GZIP_WBITS))
            print(row(name, "gzip", level, len(body), packed, pack, unpack))
        for level in (1, 3) if zstd else ():
            packed = zstd.compress(body, level)
            pack = milliseconds(lambda body=body, level=level: zstd.compress(body, level))
            unpack = milliseconds(lambda packed=packed: zstd.decompress(packed))
            print(row(name, "zstd", level, len(body), packed, pack, unpack))
    return 0


if __name__ == "__main__":
    sys.exit(main())
