"""Writes `gpt2/`: a tiny random GPT-2 of Hugging Face's transformers, with its logits, log-probabilities and texts.

`make golden` runs this script in a virtual environment of its own, since torch is large. `tests/test_parity.py`
compares with its files.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
FOLDER = HERE / "gpt2"
END = "<|endoftext|>"
SCORED = [
    "Licensed under the Apache License, Version 2.0 (the License); you may not use this file except in",
    "Work shall mean the work of authorship, whether in Source or Object form, naïve café – 中文",
]
PROMPTS = ["You may", "The quick brown fox jumps over the", "A"]
MAX_TOKENS = 20


def main() -> None:
    """Writes the folder."""
    torch.manual_seed(0)
    shutil.rmtree(FOLDER, ignore_errors=True)
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    base.train_from_iterator([(HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, eos_token=END, bos_token=END)

    size = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    end = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **size)
    model = GPT2LMHeadModel(config).eval()
    # Larger than initial weights, and none at zero or one, so that every array changes the logits.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)

    scored = [tokenizer(text)["input_ids"][:40] for text in SCORED]
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0] for ids in scored]
    pairs = zip(logits, scored, strict=True)
    log_probabilities = [
        sequence_logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
        for sequence_logits, ids in pairs
    ]
    save_file({"logits": logits[0][:40].contiguous()}, FOLDER / "golden.safetensors")
    greedy = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        sequence = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=end
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
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    for name in ("generation_config.json", "special_tokens_map.json"):
        (FOLDER / name).unlink(missing_ok=True)
    print(f"wrote {FOLDER}: {sum(file.stat().st_size for file in FOLDER.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
