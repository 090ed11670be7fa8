"""Offline batch with Ray Data: JSON lines in OpenAI's batch format in, the same format out.

    pip install "ray[data]" httpx
    python batch.py --model /models/x --input in.jsonl --output out --replicas 2

Each actor has a `njoule serve` of its own and keeps `--concurrency` rows in it, which fills its batch. A server that dies is
started anew and the rows that it had are asked again; so are rows that it says it may answer later. An actor that dies is
started anew by Ray and its blocks are run again. A row that cannot be answered, or is none, has its error: none is lost. On
Neuron: --neuron-cores 2.
"""

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import ray

import rows
from njoule_process import start

# Of a row whose server dies or has no room.
ATTEMPTS = 5


class Answer:
    """Answers the rows of a block."""

    def __init__(self, model: str, concurrency: int, arguments: tuple):
        self.model, self.arguments = model, arguments
        self.limits = httpx.Limits(max_connections=concurrency)
        self.pool = ThreadPoolExecutor(concurrency)
        self.lock = threading.Lock()
        self._start()

    def _start(self):
        self.process, url = start(self.model, self.arguments)
        self.client = httpx.Client(base_url=url, timeout=None, limits=self.limits)

    def _lives(self):
        try:
            return self.process.poll() is None and self.client.get("/live", timeout=5).is_success
        except httpx.TransportError:
            return False

    def _replace(self, seen):
        """Another server in the place of `seen`, made by whoever misses it first; none where only a connection was lost."""
        with self.lock:
            if self.process is seen and not self._lives():
                seen.kill()
                seen.wait()
                self._start()

    def __call__(self, block: dict) -> dict:
        return {"line": list(self.pool.map(self.answer, block["text"]))}

    def ask(self, url: str, body: bytes) -> httpx.Response | None:
        """The answer, or none where every server died that was asked."""
        for attempt in range(ATTEMPTS):
            last = attempt + 1 == ATTEMPTS
            with self.lock:
                process, client = self.process, self.client
            try:
                answer = client.post(url, content=body, headers={"content-type": "application/json"})
            except httpx.TransportError:
                # Also after the last one: others have rows there.
                self._replace(process)
                continue
            again = answer.headers.get("x-should-retry") == "true" or answer.status_code in (408, 429, 503)
            if last or not again:
                return answer
            # Its own estimate of when there will be room.
            time.sleep(rows.patience(answer.headers.get("retry-after")))

    def answer(self, text: str) -> str:
        """The record of a row."""
        try:
            custom_id, url, body = rows.request(text)
            answer = self.ask(url, body)
            if answer is None:
                raise rows.Refused("server_lost", f"{ATTEMPTS} servers were lost while they had it", custom_id)
        except rows.Refused as refused:
            return refused.record()
        return rows.record(custom_id, answer.status_code, answer.headers.get("x-request-id"), answer.text)


def run(model, source, output, replicas=2, neuron_cores=0, concurrency=16, block=16, arguments=()):
    resources = {"resources": {"neuron_cores": neuron_cores}} if neuron_cores else {"num_cpus": 1}
    lines = ray.data.read_text(source).repartition(target_num_rows_per_block=block)
    answers = lines.map_batches(
        Answer,
        fn_constructor_args=(model, concurrency, arguments),
        batch_size=block,
        compute=ray.data.ActorPoolStrategy(size=replicas),
        **resources,
    )
    count = 0
    with open(output, "w") as out:
        for row in answers.iter_rows():
            out.write(row["line"] + "\n")
            count += 1
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--neuron-cores", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--block", type=int, default=16)
    args, rest = parser.parse_known_args()
    done = run(args.model, args.input, args.output, args.replicas, args.neuron_cores, args.concurrency, args.block, tuple(rest))
    print(f"{done} rows")
