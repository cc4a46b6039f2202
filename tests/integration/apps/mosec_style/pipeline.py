"""Three stages: what goes between them are Python's own types, and the middle one has two workers."""

from zmesh import Server, ValidationError, Worker


class Preprocess(Worker):
    example = {"words": "how many words"}

    def forward(self, data: dict) -> tuple[str, bytes]:
        try:
            return data["words"], data["words"].encode()
        except KeyError as err:
            raise ValidationError(f"cannot find key {err}") from err


class Count(Worker):
    def forward(self, data: tuple[str, bytes]) -> list[int]:
        assert isinstance(data, tuple) and isinstance(data[1], bytes)
        return [len(word) for word in data[0].split()]


class Postprocess(Worker):
    def forward(self, data: list[int]) -> dict:
        return {"words": len(data), "letters": sum(data)}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Preprocess)
    server.append_worker(Count, num=2)
    server.append_worker(Postprocess)
    server.run()
