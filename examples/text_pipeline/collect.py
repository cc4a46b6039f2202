"""Writes sentences.tsv anew: what Django says to its users, in ten languages. Needed only to change the data.

    pip install django==5.2 && python examples/text_pipeline/collect.py

A line is the number of a message, a language, and the text. Translations of one message have one number, so that none
of them can be held out while another is trained on.
"""

import re
from gettext import GNUTranslations
from importlib.util import find_spec
from pathlib import Path

LANGUAGES = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "sv", "tr")
WORDS_MIN, CHARACTERS_MAX = 4, 160
# Names to be filled in, tags, addresses: what is the same in every language.
FOREIGN = re.compile(
    r"%\([^)]*\)[sd]|%[sdi%]|\{[^}]*\}|<[^>]*>|&\w+;|https?:\S+|\S*\.(?:py|html|com|org)\b|[\"“”„«»‘’`]"
)


def messages(catalog: Path) -> dict[str, list[str]]:
    """English -> what it is in the language of the catalog; several for a plural."""
    found: dict[str, list[str]] = {}
    with catalog.open("rb") as file:
        for key, text in GNUTranslations(file)._catalog.items():  # type: ignore[attr-defined]  # there is no other way
            english = (key[0] if isinstance(key, tuple) else key).rpartition("\x04")[2]
            if english and text:
                found.setdefault(english, []).append(text)
    return found


def sentences(text: str) -> list[str]:
    plain = " ".join(FOREIGN.sub(" ", text).split())
    found = re.split(r"(?<=[.!?]) ", plain)
    return [one for one in found if len(one.split()) >= WORDS_MIN and len(one) <= CHARACTERS_MAX]


def main() -> None:
    spec = find_spec("django")
    assert spec and spec.origin, "pip install django==5.2"
    root = Path(spec.origin).parent
    texts: dict[str, dict[str, list[str]]] = {}  # English -> language -> texts
    for language in LANGUAGES:
        for catalog in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
            for english, found in messages(catalog).items():
                texts.setdefault(english, {}).setdefault(language, []).extend(found)
    lines, seen = [], set()
    for number, english in enumerate(sorted(texts)):
        for language in LANGUAGES:
            found = [english] if language == "en" else texts[english].get(language, [])
            for one in (sentence for text in found for sentence in sentences(text)):
                if one not in seen:
                    seen.add(one)
                    lines.append(f"{number}\t{language}\t{one}\n")
    (Path(__file__).parent / "sentences.tsv").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} sentences of {len({line.split(chr(9))[0] for line in lines})} messages")


if __name__ == "__main__":
    main()
