"""Picks the sentences of a text that say most of it, and counts what it does in metrics of its own.

Start it with  zmesh run examples/own_metrics/app.py
and try it     curl -d '{"text": "It rains. Bees fly when the sun shines."}' http://127.0.0.1:8000/summary
its metrics    curl -s http://127.0.0.1:8000/metrics | grep summary_
"""

import re
from collections import Counter, OrderedDict
from typing import Any

from zmesh import Server, ValidationError, Worker

REMEMBERED = 1000  # answers that a worker keeps
SENTENCE = re.compile(r"[^.!?]+[.!?]*")
WORD = re.compile(r"\w{4,}")  # shorter ones hold a sentence together and say little


class Summarise(Worker):
    example = {"text": "It rains. Bees fly when the sun shines.", "sentences": 1}

    def __init__(self) -> None:
        lookups = self.metrics.counter("summary_lookups", "Requests by whether the answer was remembered", ["outcome"])
        # .labels(…) is a look-up too: what is counted for every request is kept.
        self.hits, self.misses = lookups.labels("hit"), lookups.labels("miss")
        self.remembered = self.metrics.gauge("summary_remembered", "Answers that this worker remembers")
        self.words = self.metrics.histogram(
            "summary_text_words", "Words of a text", buckets=[10, 30, 100, 300, 1000, 3000]
        )
        self.answers: OrderedDict[tuple[str, int], list[str]] = OrderedDict()

    def forward(self, requests: list[Any]) -> list[dict[str, Any] | ValidationError]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> dict[str, Any] | ValidationError:
        """One answer. An error is returned, not raised, so that it is the answer of this request only."""
        text = request.get("text") if isinstance(request, dict) else None
        number = request.get("sentences", 1) if isinstance(request, dict) else None
        if not isinstance(text, str) or type(number) is not int or number < 1:
            return ValidationError('send {"text": "…", "sentences": 1}')
        self.words.observe(len(text.split()))
        found = self.answers.get((text, number))
        if found is not None:
            self.hits.inc()
            self.answers.move_to_end((text, number))
        else:
            self.misses.inc()
            found = self.answers[text, number] = best_sentences(text, number)
            if len(self.answers) > REMEMBERED:
                self.answers.popitem(last=False)
            self.remembered.set(len(self.answers))
        return {"summary": " ".join(found)}


def best_sentences(text: str, number: int) -> list[str]:
    """Those with the most frequent words of the text, in the order of the text: H. P. Luhn's way, of 1958."""
    sentences = [found.strip() for found in SENTENCE.findall(text) if found.strip()]
    frequency = Counter(WORD.findall(text.casefold()))
    scores = []
    for index, sentence in enumerate(sentences):
        words = WORD.findall(sentence.casefold())
        scores.append((-sum(frequency[word] for word in words) / (len(words) + 2), index))  # 2: not only the shortest
    return [sentences[index] for index in sorted(index for _, index in sorted(scores)[:number])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Summarise, num=2, max_batch_size=8, max_wait_time=1, route="/summary")
    server.run()
