"""A jitted network of one hidden layer, which is compiled for every size of batch before the first request.

Start it with  zmesh run examples/jax_single_layer/app.py
and try it     curl -d '{"array": [1, 2, 3]}' http://127.0.0.1:8000/inference
"""

from typing import Any

from zmesh import Server, ValidationError, Worker

INPUTS, HIDDEN, CATEGORIES = 3, 16, 2
BATCH_MAX = 8


class Classify(Worker):
    # Each is a batch, and jax compiles for each shape: one example for each size there can be.
    multi_examples = [[{"array": [0.0] * INPUTS}] * size for size in range(1, BATCH_MAX + 1)]

    def __init__(self) -> None:
        import jax  # here, since the gateway reads this file too and needs none of it

        self.compilations = 0
        first, second = jax.random.split(jax.random.PRNGKey(42))
        to_hidden = jax.random.normal(first, (INPUTS, HIDDEN))
        to_category = jax.random.normal(second, (HIDDEN, CATEGORIES))

        @jax.jit
        def categories(arrays: Any) -> Any:
            self.compilations += 1  # Python code in here runs when it is compiled, and at no other time
            return (jax.nn.relu(arrays @ to_hidden) @ to_category).argmax(axis=-1)

        self.categories, self.as_array = categories, jax.numpy.asarray

    def forward(self, batch: list[Any]) -> list[dict[str, Any] | ValidationError]:
        arrays = [array_of(data) for data in batch]
        rows = [array or [0.0] * INPUTS for array in arrays]  # the shape stays one of those that are compiled
        found = self.categories(self.as_array(rows, "float32")).tolist()
        return [
            ValidationError(f'send {{"array": [{INPUTS} numbers]}}')
            if array is None
            else {"category": category, "compilations": self.compilations}
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
    server.append_worker(Classify, max_batch_size=BATCH_MAX, max_wait_time=5)
    server.run()
