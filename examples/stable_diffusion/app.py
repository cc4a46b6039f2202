"""Draws what a text describes, with Stable Diffusion: msgpack in, a JPEG in msgpack out, four pictures at a time.

Start it with  zmesh run examples/stable_diffusion/app.py
and try it     python examples/stable_diffusion/client.py --prompt "a red fox in the snow"
"""

import os
from io import BytesIO
from typing import Any

from zmesh import Server, ValidationError, Worker, get_logger
from zmesh.mixins import MsgpackMixin

MODEL = os.environ.get("DIFFUSION_MODEL", "stable-diffusion-v1-5/stable-diffusion-v1-5")
STEPS = 30
CHARACTERS_MAX = 1000  # of a prompt; the model reads the first 77 tokens

logger = get_logger()


class Prompt(MsgpackMixin, Worker):
    """Refuses what is no prompt before it takes a place in a batch."""

    def forward(self, data: Any) -> dict[str, Any]:
        prompt, seed = (data.get("prompt"), data.get("seed", 0)) if isinstance(data, dict) else (None, 0)
        if not isinstance(prompt, str) or not 0 < len(prompt) <= CHARACTERS_MAX or type(seed) is not int:
            raise ValidationError('send {"prompt": text, "seed": a whole number, if you like}')
        return {"prompt": prompt, "seed": seed % 2**63}


class Draw(MsgpackMixin, Worker):
    """Up to four prompts at once. The warm-up draws one picture, so that the first client does not wait for kernels."""

    example = [{"prompt": "a red fox in the snow", "seed": 0}]

    def __init__(self) -> None:
        # Here and not above: gateway, agent and `zmesh check` read this file too, and need neither of them.
        import torch
        from diffusers import StableDiffusionPipeline

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        # Called `dtype` from diffusers 1.0 on; 0.x warns and takes it.
        self.pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=dtype).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)

    def forward(self, orders: list[dict[str, Any]]) -> list[bytes | ValidationError]:
        generators = [self.torch.Generator(self.device).manual_seed(order["seed"]) for order in orders]
        drawn = self.pipe([order["prompt"] for order in orders], generator=generators, num_inference_steps=STEPS)
        withheld = drawn.nsfw_content_detected or [False] * len(orders)
        logger.info("drew %d pictures, withheld %d", len(orders), sum(withheld))
        refusal = ValidationError("the model takes this picture for one that is not safe to show")
        return [refusal if hide else jpeg(image) for image, hide in zip(drawn.images, withheld, strict=True)]


def jpeg(image: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    server = Server(timeout=120_000)  # in ms; a flag --timeout is stronger
    server.append_worker(Prompt, route="/picture")
    server.append_worker(Draw, max_batch_size=4, max_wait_time=100, timeout=90, route="/picture")
    server.run()
