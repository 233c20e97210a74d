"""Language models: tokenizers, corpora, training, evaluation, online learning, Hugging Face folders.

Imports go one way: `tokenizer` imports no other module here; `corpus` and `overlap` import it; `optimization` and
`sizes` know only the transformer; `model` (a language model on disk) imports `tokenizer` and `hugging_face`;
`training`, `evaluation` and `online` import these.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ontogeny.lm.evaluation import evaluate
    from ontogeny.lm.model import load
    from ontogeny.lm.training import train

__all__ = ["evaluate", "load", "train"]

_MODULES = {"evaluate": "evaluation", "load": "model", "train": "training"}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used, so that `import ontogeny.lm` stays fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ontogeny.lm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ontogeny.lm.{_MODULES[name]}"), name)
