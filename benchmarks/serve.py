"""A server under load from a second process, on loopback: tokens and requests per second, time to the first token.

    python benchmarks/serve.py                  ours
    python benchmarks/serve.py --learning       what learning costs users of frozen weights
    python benchmarks/serve.py --peer PYTHON    beside FastAPI + transformers' generate, same weights
    python benchmarks/serve.py --varied         answers of 32 to 96 tokens in place of 64

The model has 6 layers, 384 wide, vocabulary 8192, random weights in a GPT-2 folder that both load; speed does not
depend on what the weights know. Each stream asks, reads its answer to the end, and asks again; the first round of each
stream is not counted. Both servers answer the same questions, one after the other, in one run. Prints JSON lines.
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

PROMPT, NEW, VOCABULARY = 32, 64, 8192
ROOT = Path(__file__).parent.parent
PEER = """
import asyncio, json, sys, threading
import torch, uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from transformers import GPT2LMHeadModel
from transformers.generation.streamers import BaseStreamer

model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
app, lock = FastAPI(), threading.Lock()

class Told(BaseStreamer):
    def __init__(self, loop, queue):
        self.loop, self.queue, self.first = loop, queue, True
    def put(self, value):
        if not self.first:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, int(value[0]))
        self.first = False
    def end(self):
        self.loop.call_soon_threadsafe(self.queue.put_nowait, None)

def work(tokens, most, told):
    with lock, torch.no_grad():
        ids = torch.tensor([tokens])
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, min_new_tokens=most,
                       do_sample=True, top_k=0, pad_token_id=0, streamer=told)

@app.get("/ready")
def ready():
    return {"status": "ready"}

@app.post("/v1/completions")
async def completions(request: Request):
    body, queue = await request.json(), asyncio.Queue()
    told = Told(asyncio.get_running_loop(), queue)
    threading.Thread(target=work, args=(body["prompt"], body["max_tokens"], told), daemon=True).start()
    async def events():
        while (token := await queue.get()) is not None:
            yield "data: " + json.dumps({"choices": [{"index": 0, "text": str(token)}]}) + "\\n\\n"
        yield "data: [DONE]\\n\\n"
    return StreamingResponse(events(), media_type="text/event-stream")

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


def make_folder(folder: Path) -> None:
    """A GPT-2 folder of random weights, with a tokenizer of as many words."""
    import jax
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from ontogeny.content.transformer import init_weights, make_config
    from ontogeny.lm import hugging_face
    from ontogeny.lm.tokenizer import BytePairs, byte_letters

    words = [*byte_letters(), "<|endoftext|>"]
    words += [a + b for a in words[:256] for b in words[:256]][: VOCABULARY - len(words)]
    made = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    config = make_config("gpt2", VOCABULARY, 256, num_layers=6, num_heads=6, width=384)
    hugging_face.write(folder, config, init_weights(jax.random.key(0), config), BytePairs(made))


async def stream(
    port: int, rounds: int, draw: random.Random, varied: bool, found: list[tuple[float, float, float, int]]
) -> None:
    """Asks so many times; appends when it began, when the first token came, when the last, how many there were."""
    for number in range(rounds):
        prompt = [draw.randrange(256) for _ in range(PROMPT)]
        most = draw.randint(NEW // 2, NEW + NEW // 2) if varied else NEW
        body = {"model": "model", "prompt": prompt, "max_tokens": most, "stream": True, "seed": draw.getrandbits(30)}
        data = json.dumps(body | {"temperature": 1.0}).encode()
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        first, count = 0.0, 0
        while line := await reader.readline():
            if line.startswith(b"data: {") and b'"finish_reason": "' not in line:
                count += 1
                first = first or time.perf_counter()
        writer.close()
        if number and first:
            found.append((began, first, time.perf_counter(), count))


async def measure(port: int, streams: int, rounds: int, seed: int, varied: int) -> dict[str, float]:
    found: list[tuple[float, float, float, int]] = []
    await asyncio.gather(
        *(stream(port, rounds + 1, random.Random(1000 * seed + i), bool(varied), found) for i in range(streams))
    )
    began, ended = min(f[0] for f in found), max(f[2] for f in found)
    waits = sorted(f[1] - f[0] for f in found)
    return {
        "tokens_per_s": sum(f[3] for f in found) / (ended - began),
        "requests_per_s": len(found) / (ended - began),
        "first_p50": waits[len(waits) // 2],
        "first_p99": waits[min(len(waits) - 1, int(0.99 * len(waits)))],
        "requests": len(found),
        "seconds": ended - began,
    }


def start(command: list[str]) -> tuple[subprocess.Popen, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = Path(tempfile.gettempdir()) / "ontogeny-bench-serve.log"
    with log.open("ab") as out:
        process = subprocess.Popen([*command, str(port)], stdout=out, stderr=out)
    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if b" 200 " in connection.recv(100):
                    return process, port
        except OSError:
            pass
        if process.poll() is not None:
            raise SystemExit(f"a server did not start: see {log}")
        time.sleep(0.2)
    raise SystemExit("a server was not ready in 300 s")


def loaded(port: int, streams: int, rounds: int, seed: int = 0, varied: bool = False) -> dict[str, float]:
    """Measured by a process of its own. The same seed asks the same questions, which a server may remember."""
    asked = [sys.executable, __file__, "--load", str(port), str(streams), str(rounds), str(seed), str(int(varied))]
    return json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def learning_costs(streams: int, rounds: int) -> None:
    """Tokens per second of those whom a frozen deployment answers, without and with one beside it that learns."""
    with tempfile.TemporaryDirectory() as temporary:
        run, state, text = Path(temporary) / "run", Path(temporary) / "state", Path(temporary) / "text.txt"
        text.write_text("\n\n".join(page.read_text(encoding="utf-8") for page in sorted(ROOT.rglob("*.md"))))
        shape = ("--layers", "6", "--heads", "6", "--width", "384", "--context", "256", "--vocabulary", str(VOCABULARY))
        train = [sys.executable, "-m", "ontogeny", "train", "text", str(text), *shape, "--steps", "1", "--batch", "1"]
        subprocess.run([*train, "--out", str(run)], check=True, capture_output=True)
        ours = [sys.executable, "-m", "ontogeny", "serve", "--alias", f"model={run}", "--alias", f"learner={run}"]
        process, port = start([*ours, "--state", str(state), "--online", "--freeze", "model", "--port"])
        try:
            calm = loaded(port, streams, rounds)
            teacher = subprocess.Popen([sys.executable, __file__, "--teach", str(port), str(text)])
            time.sleep(10)
            learning = loaded(port, streams, rounds, 1)
            teacher.kill()
            teacher.wait()
            learned = json.loads(asyncio.run(ask(port, "GET", "/v1/models/learner/line")))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    record = {
        "name": "serve.frozen_while_learning",
        "value": round(learning["tokens_per_s"], 2),
        "unit": "tokens/s",
        "peer": "the same without learning",
        "peer_value": round(calm["tokens_per_s"], 2),
        "ratio": round(learning["tokens_per_s"] / calm["tokens_per_s"], 3),
        "seconds": round(learning["seconds"], 2),
        "setting": {"streams": streams, "decided": len(learned["decisions"]), "load": round(os.getloadavg()[0], 1)},
    }
    print(json.dumps(record), flush=True)


async def ask(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n\r\n")[2]


async def teach(port: int, text: str) -> None:
    """Contributes 2,000 characters at a time, so that there is always something to be learned."""
    while True:
        for at in range(0, len(text), 2000):
            await ask(
                port, "POST", "/v1/models/learner/contributions", json.dumps({"text": text[at : at + 2000]}).encode()
            )
            await asyncio.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", nargs="?", const=sys.executable, help="A Python that has torch and transformers.")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--varied", action="store_true", help="Answers of different lengths.")
    parser.add_argument("--learning", action="store_true", help="What learning costs those who are frozen, alone.")
    parser.add_argument("--teach", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=int, nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        return print(json.dumps(asyncio.run(measure(*asked.load))))
    if asked.teach:
        return asyncio.run(teach(int(asked.teach[0]), Path(asked.teach[1]).read_text(encoding="utf-8")))
    if asked.learning:
        return learning_costs(16, asked.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder, state = Path(temporary) / "model", Path(temporary) / "state"
        make_folder(folder)
        ours = [sys.executable, "-m", "ontogeny", "serve", "--alias", f"model={folder}", "--state", str(state)]
        servers = {"ours": start([*ours, "--port"])}
        if asked.peer:
            servers["peer"] = start([asked.peer, "-c", PEER, str(folder)])
        try:
            for streams in asked.streams:
                both = {
                    name: loaded(port, streams, asked.rounds, streams, asked.varied)
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
                        "new": "32 to 96" if asked.varied else NEW,
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
