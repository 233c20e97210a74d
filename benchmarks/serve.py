"""Throughput and time to first token of a server on loopback, under load from a second process.

    python benchmarks/serve.py                  ontogeny alone
    python benchmarks/serve.py --learning       cost of a learning deployment for the users of a frozen one
    python benchmarks/serve.py --peer PYTHON    beside FastAPI and transformers' generate with the same weights
    python benchmarks/serve.py --varied         responses of 32 to 96 tokens instead of 64

The model has 6 layers of width 384, a vocabulary of 8192 and random weights in a GPT-2 folder that both servers load;
its speed does not depend on the weights. Each stream sends a request, reads the response to its end, and repeats; the
first round of each stream is not counted. Both servers answer the same requests, one server after the other. Prints
JSON lines.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

PROMPT, NEW, VOCABULARY = 32, 64, 8192
PEER = """
import asyncio, json, sys, threading
import torch, uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from transformers import GPT2LMHeadModel
from transformers.generation.streamers import BaseStreamer

model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
app, lock = FastAPI(), threading.Lock()

class QueueStreamer(BaseStreamer):
    def __init__(self, loop, queue):
        self.loop, self.queue, self.first = loop, queue, True
    def put(self, value):
        if not self.first:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, int(value[0]))
        self.first = False
    def end(self):
        self.loop.call_soon_threadsafe(self.queue.put_nowait, None)

def work(tokens, max_tokens, streamer):
    with lock, torch.no_grad():
        ids = torch.tensor([tokens])
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, min_new_tokens=max_tokens,
                       do_sample=True, top_k=0, pad_token_id=0, streamer=streamer)

@app.get("/ready")
def ready():
    return {"status": "ready"}

@app.post("/v1/completions")
async def completions(request: Request):
    body, queue = await request.json(), asyncio.Queue()
    streamer = QueueStreamer(asyncio.get_running_loop(), queue)
    threading.Thread(target=work, args=(body["prompt"], body["max_tokens"], streamer), daemon=True).start()
    async def events():
        while (token := await queue.get()) is not None:
            yield "data: " + json.dumps({"choices": [{"index": 0, "text": str(token)}]}) + "\\n\\n"
        yield "data: [DONE]\\n\\n"
    return StreamingResponse(events(), media_type="text/event-stream")

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


def make_folder(folder: Path) -> None:
    """Writes a GPT-2 folder with random weights and a tokenizer of the same vocabulary size."""
    import jax
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from ontogeny.content.transformer import init_weights, make_config
    from ontogeny.lm import hugging_face
    from ontogeny.lm.tokenizer import BPETokenizer, byte_symbols

    words = [*byte_symbols(), "<|endoftext|>"]
    words += [a + b for a in words[:256] for b in words[:256]][: VOCABULARY - len(words)]
    tokenizer = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    config = make_config("gpt2", VOCABULARY, 256, num_layers=6, num_heads=6, width=384)
    hugging_face.write_folder(folder, config, init_weights(jax.random.key(0), config), BPETokenizer(tokenizer))


async def stream(
    port: int, rounds: int, draw: random.Random, varied: bool, responses: list[tuple[float, float, float, int]]
) -> None:
    """Sends requests one after the other; appends start, time of the first and last token, and number of tokens."""
    for number in range(rounds):
        prompt = [draw.randrange(256) for _ in range(PROMPT)]
        max_tokens = draw.randint(NEW // 2, NEW + NEW // 2) if varied else NEW
        body = {"model": "model", "prompt": prompt, "max_tokens": max_tokens, "stream": True, "temperature": 1.0}
        data = json.dumps(body | {"seed": draw.getrandbits(30)}).encode()
        started_at = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        header = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{header}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        first, count = 0.0, 0
        while line := await reader.readline():
            if line.startswith(b"data: {") and b'"finish_reason": "' not in line:
                count += 1
                first = first or time.perf_counter()
        writer.close()
        if number and first:
            responses.append((started_at, first, time.perf_counter(), count))


async def measure(port: int, streams: int, rounds: int, seed: int, varied: int) -> dict[str, float]:
    """Sends requests in several streams; returns throughput and time to first token."""
    responses: list[tuple[float, float, float, int]] = []
    await asyncio.gather(
        *(stream(port, rounds + 1, random.Random(1000 * seed + i), bool(varied), responses) for i in range(streams))
    )
    started_at, finished_at = min(r[0] for r in responses), max(r[2] for r in responses)
    seconds, latencies = finished_at - started_at, sorted(r[1] - r[0] for r in responses)
    return {
        "tokens_per_s": sum(r[3] for r in responses) / seconds,
        "requests_per_s": len(responses) / seconds,
        "first_p50": latencies[len(latencies) // 2],
        "first_p99": latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
        "requests": len(responses),
        "seconds": seconds,
    }


def start(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a server on a free port, which is appended to the command; returns when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = Path(tempfile.gettempdir()) / "ontogeny-bench-serve.log"
    with log.open("ab") as out:
        process = subprocess.Popen([*command, str(port)], stdout=out, stderr=out)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if b" 200 " in connection.recv(100):
                    return process, port
        except OSError:
            pass
        if process.poll() is not None:
            raise SystemExit(f"a server did not start: see {log}")
        time.sleep(0.2)
    raise SystemExit("a server was not ready in 300 s")


def measure_in_process(port: int, streams: int, rounds: int, seed: int = 0, varied: bool = False) -> dict[str, float]:
    """Measures in a process of its own. Equal seeds send equal requests, whose prefixes a server may have cached."""
    command = [sys.executable, __file__, "--load", str(port), str(streams), str(rounds), str(seed), str(int(varied))]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_learning_cost(streams: int, rounds: int) -> None:
    """Prints the throughput of a frozen deployment, without and with a learning deployment on the same server."""
    with tempfile.TemporaryDirectory() as temporary:
        run, state_dir, text = (Path(temporary) / name for name in ("run", "state", "text.txt"))
        text.write_text("\n\n".join(topics[name] for name in sorted(topics)))  # the manual of Python
        shape = ("--num-layers", "6", "--num-heads", "6", "--width", "384", "--context-length", "256")
        options = (*shape, "--vocab-size", str(VOCABULARY), "--num-steps", "1", "--batch-size", "1", "--out", str(run))
        train = [sys.executable, "-m", "ontogeny", "lm", "train", str(text), *options]
        subprocess.run(train, check=True, capture_output=True)
        command = [sys.executable, "-m", "ontogeny", "serve", "--alias", f"model={run}", "--alias", f"learner={run}"]
        process, port = start([*command, "--state-dir", str(state_dir), "--online", "--freeze", "model", "--port"])
        try:
            baseline = measure_in_process(port, streams, rounds)
            example_sender = subprocess.Popen([sys.executable, __file__, "--send-examples", str(port), str(text)])
            try:
                time.sleep(10)
                learning = measure_in_process(port, streams, rounds, 1)
            finally:
                example_sender.kill()
                example_sender.wait()
            branch = json.loads(asyncio.run(send(port, "GET", "/v1/models/learner/branch")))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    record = {
        "name": "serve.frozen_while_learning",
        "value": round(learning["tokens_per_s"], 2),
        "unit": "tokens/s",
        "peer": "the same without learning",
        "peer_value": round(baseline["tokens_per_s"], 2),
        "ratio": round(learning["tokens_per_s"] / baseline["tokens_per_s"], 3),
        "seconds": round(learning["seconds"], 2),
        "setting": {"streams": streams, "decisions": len(branch["decisions"]), "load": round(os.getloadavg()[0], 1)},
    }
    print(json.dumps(record), flush=True)


async def send(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    """Sends a request; returns the body of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    header = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{header}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    response = await reader.read()
    writer.close()
    return response.partition(b"\r\n\r\n")[2]


async def send_examples(port: int, text: str) -> None:
    """Sends training examples of 2,000 characters without end, so that the learner is never idle."""
    while True:
        for start in range(0, len(text), 2000):
            body = json.dumps({"text": text[start : start + 2000]}).encode()
            await send(port, "POST", "/v1/models/learner/examples", body)
            await asyncio.sleep(0.5)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", nargs="?", const=sys.executable, help="A Python that has torch and transformers.")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--varied", action="store_true", help="Responses of different lengths.")
    parser.add_argument("--learning", action="store_true", help="Measure only the cost of learning.")
    parser.add_argument("--send-examples", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=int, nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        return print(json.dumps(asyncio.run(measure(*arguments.load))))
    if arguments.send_examples:
        port, text = arguments.send_examples
        return asyncio.run(send_examples(int(port), Path(text).read_text(encoding="utf-8")))
    if arguments.learning:
        return measure_learning_cost(16, arguments.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder, state_dir = Path(temporary) / "model", Path(temporary) / "state"
        make_folder(folder)
        command = [
            sys.executable,
            "-m",
            "ontogeny",
            "serve",
            "--alias",
            f"model={folder}",
            "--state-dir",
            str(state_dir),
        ]
        servers = {"ours": start([*command, "--port"])}
        if arguments.peer:
            servers["peer"] = start([arguments.peer, "-c", PEER, str(folder)])
        try:
            for streams in arguments.streams:
                both = {
                    name: measure_in_process(port, streams, arguments.rounds, streams, arguments.varied)
                    for name, (_, port) in servers.items()
                }
                for name, unit in (
                    ("tokens_per_s", "tokens/s"),
                    ("requests_per_s", "requests/s"),
                    ("first_p50", "s"),
                    ("first_p99", "s"),
                ):
                    record = {"name": f"serve.{name}", "value": round(both["ours"][name], 4), "unit": unit}
                    if "peer" in both:
                        peer = both["peer"][name]
                        record |= {"peer": "FastAPI + transformers generate", "peer_value": round(peer, 4)}
                        record["ratio"] = round(both["ours"][name] / peer, 3)
                    record["seconds"] = round(both["ours"]["seconds"], 2)
                    record["setting"] = {
                        "streams": streams,
                        "prompt": PROMPT,
                        "max_tokens": "32 to 96" if arguments.varied else NEW,
                        "requests": both["ours"]["requests"],
                        "load": round(os.getloadavg()[0], 1),
                    }
                    print(json.dumps(record), flush=True)
        finally:
            for process, _ in servers.values():
                process.send_signal(signal.SIGTERM)
                process.wait()


if __name__ == "__main__":
    main()
