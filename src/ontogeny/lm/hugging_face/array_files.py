"""Lists the arrays of a Hugging Face folder: one safetensors file, or several with an index."""

import json
from pathlib import Path

from ontogeny.errors import BadInput
from ontogeny.runs.stored_arrays import FLOAT_TYPES, StoredPart, list_parts

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # constants that old versions stored


class ArrayFiles:
    """The arrays of a folder, by name without the prefix of the model's class."""

    def __init__(self, folder: Path, prefix: str) -> None:
        """Open the files.

        Args:
            folder: Place of the safetensors files.
            prefix: What names of arrays may begin with, such as `model.`.

        Raises:
            BadInput: A file is absent or damaged, or the folder is ambiguous.
        """
        self.folder = folder
        self._parts: dict[str, StoredPart] = {}
        for path, listed in _find_files(folder).items():
            parts = list_parts(path)
            for name in sorted(listed - parts.keys()):
                raise BadInput(f"'{path}' lacks the array '{name}', which '{folder / INDEX}' places there")
            for name in sorted(parts):
                short = name.removeprefix(prefix)
                if short in self._parts:
                    raise BadInput(f"the files in '{folder}' hold the array '{short}' twice")
                self._parts[short] = parts[name]
        self._unused = {name for name in self._parts if not name.endswith(BUFFERS)}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def find(self, name: str, shape: tuple[int, ...]) -> StoredPart:
        """Find an array.

        Args:
            name: Without the prefix.
            shape: The shape that it must have.

        Raises:
            BadInput: There is no such array, or it has another shape, or integers.
        """
        if name not in self._parts:
            raise BadInput(f"the weights in '{self.folder}' lack the array '{name}', which its config asks for")
        self._unused.discard(name)
        part = self._parts[name]
        if part.type_name not in FLOAT_TYPES:
            raise BadInput(
                f"the array '{name}' in '{self.folder}' has numbers of the type {part.type_name}; quantized weights "
                "cannot be read"
            )
        if part.shape != shape:
            raise BadInput(
                f"the array '{name}' in '{self.folder}' is {list(part.shape)}, its config says {list(shape)}"
            )
        return part

    def refuse_unused(self) -> None:
        """Raise `BadInput` if the files hold arrays that were not asked for, since they would change the model."""
        if self._unused:
            names = ", ".join(f"'{name}'" for name in sorted(self._unused)[:3])
            more = f" and {len(self._unused) - 3} more" if len(self._unused) > 3 else ""
            raise BadInput(f"the weights in '{self.folder}' hold {names}{more}, which its config does not provide for")


def _find_files(folder: Path) -> dict[Path, set[str]]:
    """The files of the weights, each with the arrays that the index places there."""
    single, index = folder / WEIGHTS, folder / INDEX
    if not index.is_file():
        if single.is_file():
            return {single: set()}
        pickles = [name for name in PICKLES if (folder / name).exists()]
        note = f" ({pickles[0]} is a pickle, which is not read)" if pickles else ""
        raise BadInput(f"there is no '{single}'{note}")
    try:
        places = json.loads(index.read_bytes())["weight_map"].items()
        files: dict[Path, set[str]] = {}
        for name, file_name in places:
            files.setdefault(folder / Path(file_name).name, set()).add(name)
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError):
        raise BadInput(f"'{index}' is damaged: it names no files") from None
    if single.is_file() and single not in files:
        raise BadInput(f"'{folder}' holds two models: '{WEIGHTS}', and the files of '{INDEX}'; remove one of them")
    return files
