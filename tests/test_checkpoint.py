"""Checkpoints are loaded bit for bit, damage is reported, and no file is ever half written."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import trees
from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint
from ontogeny.runs.files import write_bytes


def tree(value: float = 1.0):
    return {
        "numbers": jnp.array([value, -0.0, jnp.nan, jnp.inf], jnp.float32),
        "count": jnp.int32(3),
        "done": jnp.array([True, False]),
        "key": jax.random.key(7),
        "square": jnp.arange(6.0).reshape(2, 3).T,
    }


@pytest.mark.parametrize("write_once", [False, True])
def test_a_saved_tree_is_loaded_bit_for_bit(tmp_path, write_once):
    digest = checkpoint.save(tmp_path, "state", tree(), {"step": 4}, write_once=write_once)
    assert trees.bitwise_equal(checkpoint.load(tmp_path, "state", tree(9.0)), tree())
    metadata = checkpoint.read_metadata(tmp_path, "state")
    assert metadata["step"] == 4 and metadata["digest"] == digest == trees.digest(tree())
    assert metadata["file"] == "state.safetensors" or not write_once


def test_a_tree_without_arrays_is_saved_and_loaded(tmp_path):
    checkpoint.save(tmp_path, "genome", (), {})
    assert checkpoint.load(tmp_path, "genome", ()) == ()
    assert checkpoint.read_metadata(tmp_path, "genome")["num_parameters"] == 0


def test_checkpoints_are_safetensors_and_json(tmp_path):
    checkpoint.save(tmp_path, "state", tree(), {})
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    json.loads((tmp_path / "state.json").read_text())
    data = next(tmp_path.glob("*.safetensors")).read_bytes()
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_the_previous_checkpoint_is_removed_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "state", tree(1.0), {"step": 1})
    replace = os.replace

    def killed(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, "state", tree(2.0), {"step": 2})
    assert checkpoint.read_metadata(tmp_path, "state")["step"] == 1
    assert trees.bitwise_equal(checkpoint.load(tmp_path, "state", tree()), tree(1.0))

    checkpoint.save(tmp_path, "state", tree(3.0), {"step": 3})
    assert trees.bitwise_equal(checkpoint.load(tmp_path, "state", tree()), tree(3.0))
    assert len(list(tmp_path.iterdir())) == 2


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


def shorten(path):
    path.write_bytes(path.read_bytes()[:-5])


def change_metadata(path):
    content = json.loads(path.read_text())
    content["metadata"]["step"] = 5
    path.write_text(json.dumps(content))


def set_future_format(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    ("pattern", "damage", "message"),
    [
        ("state-*.safetensors", flip_a_bit, r"safetensors' is damaged: its digest"),
        ("state-*.safetensors", shorten, r"safetensors' is damaged: its digest"),
        ("state-*.safetensors", os.remove, r"safetensors', which 'state.json' names, cannot be read: No such file"),
        ("state.json", shorten, r"state.json' is damaged: it is not JSON"),
        ("state.json", change_metadata, r"state.json' is damaged: its digest"),
        ("state.json", set_future_format, r"state.json' is a checkpoint of format 99; this version reads format 2"),
        ("state.json", os.remove, r"state.json' cannot be read: No such file"),
    ],
)
def test_a_damaged_checkpoint_is_reported(tmp_path, pattern, damage, message):
    checkpoint.save(tmp_path, "state", tree(), {"step": 4})
    damage(next(tmp_path.glob(pattern)))
    with pytest.raises(BadInput, match=message):
        checkpoint.load(tmp_path, "state", tree())


def test_a_tree_of_other_shapes_is_refused(tmp_path):
    checkpoint.save(tmp_path, "state", {"a": jnp.zeros(3)}, {})
    with pytest.raises(
        BadInput, match=r"does not fit this agent: the array 'a' is float32\[3\], expected float32\[4\]"
    ):
        checkpoint.load(tmp_path, "state", {"a": jnp.zeros(4)})


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_the_memory_layout_of_arrays_does_not_matter(tmp_path):
    checkpoint.save(tmp_path, "state", {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}, {})
    loaded = checkpoint.load(tmp_path, "state", {"a": jnp.zeros((3, 2))})
    assert np.array_equal(loaded["a"], [[0, 3], [1, 4], [2, 5]])
