"""Events while `forward` runs, in batches, behind a stage that checks what it is asked."""

from zmesh import Server, SSEWorker, ValidationError, Worker

EPOCH = 5


class Preprocess(Worker):
    def forward(self, data: dict) -> str:
        text = data.get("text")
        if text is None:
            raise ValidationError("text is required")
        return text


class Inference(SSEWorker):
    def forward(self, data: list[str]) -> list[str]:
        for step in range(EPOCH):
            for index, text in enumerate(data):
                self.send_stream_event(f"{text} {step}", index=index)
        return data  # of the length of the batch, and not sent


if __name__ == "__main__":
    server = Server()
    server.append_worker(Preprocess)
    server.append_worker(Inference, max_batch_size=4, max_wait_time=20)
    server.run()
