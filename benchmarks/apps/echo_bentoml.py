"""The echo for BentoML: an asynchronous API without batching, one worker, no access log, no metrics, no tracing."""

import bentoml


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False}, traffic={"timeout": 60})
class Echo:
    @bentoml.api(route="/inference")
    async def inference(self, x: str) -> dict[str, str]:
        return {"x": x}
