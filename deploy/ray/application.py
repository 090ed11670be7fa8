"""A Ray Serve application: each replica is a `njoule serve` of its own, on the cores that Ray gives it.

    pip install "ray[serve]" httpx
    NJOULE_MODEL=/models/x serve run application:app        # or: python application.py --model /models/x --replicas 2

On Neuron: --neuron-cores 2. Ray sets NEURON_RT_VISIBLE_CORES of a replica, and njoule takes those.
"""

import argparse
import asyncio
import os
import subprocess

import httpx
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from njoule_process import start

# Of the connection, not of what goes over it.
HOP = {"host", "content-length", "connection", "transfer-encoding", "keep-alive"}


@serve.deployment(
    max_ongoing_requests=32,
    max_queued_requests=256,
    # Beyond a busy moment: a replica that dies is seen without them.
    health_check_period_s=5,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=30,
)
class Njoule:
    def __init__(self, model: str, arguments: tuple = ()):
        self.model, self.arguments = model, arguments
        self.lock = asyncio.Lock()
        self._start()

    def _start(self):
        process, url = start(self.model, self.arguments)
        # In one assignment: whoever reads it has a process and its own client.
        self.server = process, httpx.AsyncClient(base_url=url, timeout=None)

    async def _lives(self) -> bool:
        process, client = self.server
        try:
            return process.poll() is None and (await client.get("/live", timeout=5)).is_success
        except httpx.TransportError:
            return False

    async def _replace(self, seen: subprocess.Popen):
        """Another process in the place of `seen`, made by whoever misses it first; none where only a connection was lost."""
        async with self.lock:
            process, client = self.server
            if process is seen and not await self._lives():
                await asyncio.to_thread(lambda: (seen.kill(), seen.wait()))
                await asyncio.to_thread(self._start)
                await client.aclose()

    async def check_health(self):
        process, client = self.server
        # One that has ended is replaced by the next request; one that hangs goes with its replica.
        if process.poll() is None:
            (await client.get("/live", timeout=5)).raise_for_status()

    async def __call__(self, request: Request):
        body = await request.body()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        for attempt in range(3):
            process, client = self.server
            try:
                sent = client.build_request(request.method, target, content=body, headers=headers)
                answer = await client.send(sent, stream=True)
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    # Whole before any of it is passed on: until then another try loses nothing.
                    content = await answer.aread()
                    return Response(content, answer.status_code, _headers(answer))
                break
            except httpx.TransportError:
                if attempt == 2:
                    raise
                await self._replace(process)

        async def events():
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:  # A client that leaves takes its request with it.
                await answer.aclose()

        return StreamingResponse(events(), answer.status_code, _headers(answer))


def _headers(answer: httpx.Response) -> dict:
    return {k: v for k, v in answer.headers.items() if k.lower() not in HOP}


def application(model: str, replicas: int = 1, neuron_cores: int = 0, arguments: tuple = ()):
    options = {"resources": {"neuron_cores": neuron_cores}} if neuron_cores else {"num_cpus": 1}
    return Njoule.options(num_replicas=replicas, ray_actor_options=options).bind(model, arguments)


app = application(os.environ["NJOULE_MODEL"]) if "NJOULE_MODEL" in os.environ else None

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--neuron-cores", type=int, default=0)
    parser.add_argument("--port", type=int, default=8000)
    args, rest = parser.parse_known_args()
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(application(args.model, args.replicas, args.neuron_cores, tuple(rest)), route_prefix="/", blocking=True)
