"""Text in and out of a language model: tokenizers, corpora, training, evaluation, generation, Hugging Face folders.

Imports inside go one way: `tokenizer` knows no other module here; `corpus` and `overlap` know it; `recipe` and `sizes`
know only the transformer; `model` (a language model on disk) knows `tokenizer` and `hugging_face`; `train`, `evaluate`
and `generate` know these and not each other.
"""
