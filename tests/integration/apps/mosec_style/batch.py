"""Dynamic batching: a list in, as many results out, in the same order."""

from zmesh import Server, Worker


class Double(Worker):
    multi_examples = [[{"x": 1}], [{"x": 1}, {"x": 2}]]

    def forward(self, data: list[dict]) -> list[dict]:
        assert isinstance(data, list) and len(data) <= self.max_batch_size
        return [{"x": 2 * item["x"], "batch": len(data)} for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Double, max_batch_size=8, max_wait_time=50)
    server.run()
