"""Writes a folder per family of language models: a tiny random model of Hugging Face's transformers, and its outputs.

`make golden` runs this script in a virtual environment of its own, since torch is large. `tests/test_parity.py`
compares with its files: logits, log-probabilities of texts, and greedy continuations. Each model exercises what its
family has of its own, and the folders are stored in the ways in which people have them.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.models.auto import AutoModelForCausalLM

HERE = Path(__file__).parent
LICENSE = (HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")
END = "<|endoftext|>"
SCORED = [
    "Licensed under the Apache License, Version 2.0 (the License); you may not use this file except in",
    "Work shall mean the work of authorship, whether in Source or Object form, naïve café – 中文",
]
PROMPTS = ["You may", "The quick brown fox jumps over the", "A"]
MAX_TOKENS = 20
NUM_SCORED = 40
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


class GoldenModel(NamedTuple):
    """How a folder is made.

    Attributes:
        make_config: Makes the config from the size of the vocabulary.
        make_tokenizer: Makes the tokenizer.
        dtype: Type in which the weights are stored; the outputs are those of the stored weights in float32.
        shard_size: The most bytes of one file.
        num_padded: Words of the model beyond those of the tokenizer.
    """

    make_config: Callable[[int], PretrainedConfig]
    make_tokenizer: Callable[[], PreTrainedTokenizerFast]
    dtype: torch.dtype = torch.float32
    shard_size: int = 1 << 30
    num_padded: int = 0


def byte_level_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding, as GPT-2's."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    base.train_from_iterator([LICENSE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token=END, bos_token=END)


def sentencepiece_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Pieces in which U+2581 stands for a space, with a token for each byte of other characters, as Llama 2's."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(byte_tokens), special_tokens=special, show_progress=False)
    trained.train_from_iterator(LICENSE.splitlines()[:40], trainer)
    model = json.loads(trained.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)[len(special) :]
    vocabulary = {word: token for token, word in enumerate([*special, *byte_tokens, *words])}
    merges = [tuple(merge) for merge in model["merges"]]
    base = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    base.normalizer = trained.normalizer
    base.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    base.add_special_tokens(special)
    base.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=base, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def small_byte_level() -> PreTrainedTokenizerFast:
    """The tokenizer of most folders."""
    return byte_level_tokenizer(280)


def rotary(config_class: type[PretrainedConfig], **settings: Any) -> Callable[[int], PretrainedConfig]:
    """Makes configs of a relative of Llama."""
    return lambda vocab_size: config_class(vocab_size=vocab_size, **COMMON | settings)


def gpt2(vocab_size: int) -> PretrainedConfig:
    """The config of GPT-2."""
    return GPT2Config(vocab_size=vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=4)


GOLDEN_MODELS = {
    "gpt2": GoldenModel(gpt2, lambda: byte_level_tokenizer(384)),
    "llama2": GoldenModel(
        rotary(LlamaConfig, rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}),
        lambda: sentencepiece_tokenizer(320),
        dtype=torch.float16,
    ),
    "llama3": GoldenModel(
        rotary(LlamaConfig, rope_parameters=LLAMA3_SCALING, tie_word_embeddings=True, attention_bias=True),
        small_byte_level,
        dtype=torch.bfloat16,
    ),
    "mistral": GoldenModel(
        rotary(MistralConfig, sliding_window=6, head_dim=12),
        lambda: sentencepiece_tokenizer(320),
        dtype=torch.bfloat16,
        shard_size=30_000,
    ),
    "qwen2": GoldenModel(
        rotary(Qwen2Config, use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=True),
        small_byte_level,
        dtype=torch.float16,
        num_padded=8,
    ),
    "qwen3": GoldenModel(rotary(Qwen3Config, head_dim=16, tie_word_embeddings=True), small_byte_level),
    "smollm3": GoldenModel(
        rotary(SmolLM3Config, no_rope_layers=[1, 0], pad_token_id=None, bos_token_id=None, eos_token_id=None),
        small_byte_level,
        dtype=torch.bfloat16,
    ),
}


def main() -> None:
    """Writes all folders."""
    for name, golden_model in GOLDEN_MODELS.items():
        write_folder(HERE / name, golden_model)


def write_folder(folder: Path, golden_model: GoldenModel) -> None:
    """Writes one folder."""
    torch.manual_seed(0)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = golden_model.make_tokenizer()
    config = golden_model.make_config(len(tokenizer) + golden_model.num_padded)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_config(config).eval()
    # Larger than initial weights, and none at zero or one, so that every array changes the logits.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.to(golden_model.dtype).save_pretrained(folder, max_shard_size=golden_model.shard_size)
    tokenizer.save_pretrained(folder)
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    write_outputs(folder, stored, tokenizer)
    for name in ("generation_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    print(f"wrote {folder}: {sum(file.stat().st_size for file in folder.iterdir()):,} bytes")


def write_outputs(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes what the model makes of the texts."""
    scored = [tokenizer(text)["input_ids"][:NUM_SCORED] for text in SCORED]
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0] for ids in scored]
    log_probabilities = [
        sequence_logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
        for sequence_logits, ids in zip(logits, scored, strict=True)
    ]
    save_file({"logits": logits[0].contiguous()}, folder / "golden.safetensors")
    greedy = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        sequence = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            suppress_tokens=list(range(len(tokenizer), model.config.vocab_size)) or None,  # those of no word
        )
        greedy.append(sequence[0, ids.shape[1] :].tolist())
    golden = {
        "scored": SCORED,
        "tokens": scored,
        "log_probabilities": [values.tolist() for values in log_probabilities],
        "prompts": PROMPTS,
        "greedy": greedy,
        "greedy_text": [tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy],
    }
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
