"""Asks for a picture and writes it to a file.

python examples/stable_diffusion/client.py --prompt "a red fox in the snow" --seed 3 --output fox.jpg
"""

import argparse
import sys
import urllib.error
import urllib.request
from pathlib import Path

import msgpack


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask the stable_diffusion example for a picture.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/picture", help="default: %(default)s")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, default=0, help="another one draws another picture; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("picture.jpg"), help="default: %(default)s")
    options = parser.parse_args()

    body = msgpack.packb({"prompt": options.prompt, "seed": options.seed})
    try:
        with urllib.request.urlopen(options.url, body, timeout=150) as answer:
            options.output.write_bytes(msgpack.unpackb(answer.read()))
    except urllib.error.HTTPError as error:
        print(f"{error.code} {error.read().decode()}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Cannot use {options.url}: {error}. Is the server running?", file=sys.stderr)
        return 1
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
