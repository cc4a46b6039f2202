"""A torch network of one hidden layer: on a GPU if there is one, else with a thread for each worker.

Start it with  zmesh run examples/torch_single_layer/app.py
and try it     curl -d '{"array": [1, 2, 3]}' http://127.0.0.1:8000/inference
"""

import os
from typing import Any

from zmesh import Server, ValidationError, Worker

INPUTS, HIDDEN, CATEGORIES = 3, 16, 2
BATCH_MAX = 8


class Classify(Worker):
    # The first batch of a size takes longer (memory is found, on a GPU kernels are loaded), so each is run beforehand.
    multi_examples = [[{"array": [0.0] * INPUTS}] * size for size in range(1, BATCH_MAX + 1)]

    def __init__(self) -> None:
        import torch  # here, since the gateway reads this file too and needs none of it

        torch.set_num_threads(1)  # or each worker would start as many as there are cores
        torch.manual_seed(42)
        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        hidden, last = torch.nn.Linear(INPUTS, HIDDEN), torch.nn.Linear(HIDDEN, CATEGORIES)
        self.network = torch.nn.Sequential(hidden, torch.nn.ReLU(), last).eval().to(self.device)

    def forward(self, batch: list[Any]) -> list[dict[str, Any] | ValidationError]:
        arrays = [array_of(data) for data in batch]
        rows = [array or [0.0] * INPUTS for array in arrays]
        with self.torch.inference_mode():
            inputs = self.torch.tensor(rows, dtype=self.torch.float32, device=self.device)
            found = self.network(inputs).argmax(dim=-1).tolist()
        return [
            ValidationError(f'send {{"array": [{INPUTS} numbers]}}')
            if array is None
            else {"category": category, "device": self.device}
            for array, category in zip(arrays, found, strict=True)
        ]


def array_of(data: Any) -> list[float] | None:
    """None for what is no array of that size; its neighbours in the batch get their answers all the same."""
    array = data.get("array") if isinstance(data, dict) else None
    if not isinstance(array, list) or len(array) != INPUTS:
        return None
    return array if all(type(number) in (int, float) and abs(number) < 1e30 for number in array) else None  # no NaN


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=int(os.environ.get("WORKERS", "1")), max_batch_size=BATCH_MAX, max_wait_time=5)
    server.run()
