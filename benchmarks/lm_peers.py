"""CTranslate2 and llama.cpp generate text from a GPT-2 folder; `lm_generate.py` runs this with their own Python.

    PYTHON benchmarks/lm_peers.py ctranslate2 FOLDER --threads 2

`make peers` builds an environment for each. The program converts the folder of Hugging Face, which must be a GPT-2 in
float32, writes one line when it is ready, and then answers each line of its input, a JSON object with `prompts` (lists
of tokens of equal length) and `max_tokens`, with one line: `tokens`, which were generated greedily, `seconds` and
`cpu_seconds`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Prompts = list[list[int]]
Generator = Callable[[Prompts, int], list[list[int]]]  # prompts and number of tokens -> generated tokens


def main() -> None:
    """Answers requests until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["ctranslate2", "llama-cpp"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    config = json.loads((arguments.folder / "config.json").read_text())
    arrays = {
        name.removeprefix("transformer."): array
        for name, array in load_file(arguments.folder / "model.safetensors").items()
    }
    build = build_ctranslate2 if arguments.peer == "ctranslate2" else build_llama_cpp
    with tempfile.TemporaryDirectory() as temporary:
        name, generate = build(config, arrays, Path(temporary), arguments.threads)
        print(json.dumps({"peer": name}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            started_at, cpu_started_at = time.perf_counter(), time.process_time()
            tokens = generate(request["prompts"], request["max_tokens"])
            seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_started_at
            print(json.dumps({"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


def build_ctranslate2(
    config: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path, threads: int
) -> tuple[str, Generator]:
    """Converts the model for CTranslate2, as its own converter of GPT-2 does."""
    import ctranslate2
    from ctranslate2.specs import common_spec, transformer_spec

    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config["n_layer"], config["n_head"], pre_norm=True, activation=common_spec.Activation.GELUTanh
    )

    def set_linear(target: Any, name: str) -> None:
        target.weight, target.bias = np.ascontiguousarray(arrays[f"{name}.weight"].T), arrays[f"{name}.bias"]

    def set_norm(target: Any, name: str) -> None:
        target.gamma, target.beta = arrays[f"{name}.weight"], arrays[f"{name}.bias"]

    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = arrays["wte.weight"]
    decoder.position_encodings.encodings = arrays["wpe.weight"]
    set_norm(decoder.layer_norm, "ln_f")
    for number, layer in enumerate(decoder.layer):
        set_norm(layer.self_attention.layer_norm, f"h.{number}.ln_1")
        set_linear(layer.self_attention.linear[0], f"h.{number}.attn.c_attn")
        set_linear(layer.self_attention.linear[1], f"h.{number}.attn.c_proj")
        set_norm(layer.ffn.layer_norm, f"h.{number}.ln_2")
        set_linear(layer.ffn.linear_0, f"h.{number}.mlp.c_fc")
        set_linear(layer.ffn.linear_1, f"h.{number}.mlp.c_proj")
    words = [f"t{number}" for number in range(config["vocab_size"])]
    spec.register_vocabulary(words)
    spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = words[0]
    spec.validate()
    spec.optimize(quantization=None)
    spec.save(str(folder))
    # One stream uses all threads for each product; many streams are divided over workers of one thread each.
    wide = ctranslate2.Generator(str(folder), inter_threads=1, intra_threads=threads, compute_type="float32")
    narrow = ctranslate2.Generator(str(folder), inter_threads=threads, intra_threads=1, compute_type="float32")

    def generate(prompts: Prompts, max_tokens: int) -> list[list[int]]:
        results = (wide if len(prompts) == 1 else narrow).generate_batch(
            [[words[token] for token in prompt] for prompt in prompts],
            max_batch_size=-(-len(prompts) // threads),
            max_length=max_tokens,
            min_length=max_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [[int(word[1:]) for word in result.sequences[0]] for result in results]

    return f"CTranslate2 {ctranslate2.__version__}", generate


def build_llama_cpp(
    config: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path, threads: int
) -> tuple[str, Generator]:
    """Converts the model for llama.cpp (GGUF in float32)."""
    import gguf
    import llama_cpp

    path, context = folder / "model.gguf", config["n_positions"]
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(context)
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    writer.add_tensor("token_embd.weight", arrays["wte.weight"])
    writer.add_tensor("position_embd.weight", arrays["wpe.weight"])
    names = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm"}
    names |= {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    parts = {"ln_f": "output_norm"}
    parts |= {
        f"h.{n}.{source}": f"blk.{n}.{target}" for n in range(config["n_layer"]) for source, target in names.items()
    }
    for source, target in parts.items():
        writer.add_tensor(f"{target}.weight", np.ascontiguousarray(arrays[f"{source}.weight"].T))
        writer.add_tensor(f"{target}.bias", arrays[f"{source}.bias"])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    llama_cpp.llama_log_set(_ignore_log(llama_cpp), None)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    handles: dict[int, Any] = {}  # contexts by number of streams

    def make_context(num_streams: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = context * num_streams, num_streams, context * num_streams
        params.n_threads = params.n_threads_batch = threads
        return llama_cpp.llama_init_from_model(model, params)

    def generate(prompts: Prompts, max_tokens: int) -> list[list[int]]:
        handle = handles.setdefault(len(prompts), None) or make_context(len(prompts))
        handles[len(prompts)] = handle
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(handle), True)
        batch = llama_cpp.llama_batch_init(sum(map(len, prompts)), 0, 1)
        generated: list[list[int]] = [[] for _ in prompts]
        latest, position = prompts, 0
        for _ in range(max_tokens):
            entries = [(stream, i, token) for stream, new in enumerate(latest) for i, token in enumerate(new)]
            batch.n_tokens = len(entries)
            for place, (stream, i, token) in enumerate(entries):
                batch.token[place], batch.pos[place] = token, position + i
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, stream
                batch.logits[place] = i == len(latest[stream]) - 1
            if llama_cpp.llama_decode(handle, batch):
                raise SystemExit("llama.cpp failed")
            position += len(latest[0])
            ends = [place for place in range(len(entries)) if batch.logits[place]]
            tokens = [
                int(np.ctypeslib.as_array(logits, shape=(config["vocab_size"],)).argmax())
                for logits in (llama_cpp.llama_get_logits_ith(handle, place) for place in ends)
            ]
            for sequence, token in zip(generated, tokens, strict=True):
                sequence.append(token)
            latest = [[token] for token in tokens]
        llama_cpp.llama_batch_free(batch)
        return generated

    return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", generate


def _ignore_log(llama_cpp: Any) -> Any:
    """A callback that drops the messages of llama.cpp."""
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    _ignore_log.callback = callback  # pyright: ignore[reportFunctionMemberAccess]  # the library has no reference
    return callback


if __name__ == "__main__":
    main()
