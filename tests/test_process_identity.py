"""What a version records about the machine and the packages that computed it."""

from types import SimpleNamespace

import jax
import pytest

from ontogeny.server.processes import identity
from ontogeny.server.processes.identity import computes_equally

MACHINE = "x86_64 avx2 fma 48K/32K/1024K/32768K; jaxlib 0.10.2; numba 0.68.1"


def test_the_description_names_instructions_caches_and_packages(tmp_path, monkeypatch):
    for number, size in enumerate(("48K\n", "32K\n", "1M\n")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size)
    monkeypatch.setattr(identity, "CACHE_FOLDER", tmp_path)
    processor, *packages = identity.describe_computation().split("; ")
    assert processor.endswith(" 48K/32K/1M") and packages[0].startswith("jaxlib ")
    monkeypatch.setattr(identity, "CACHE_FOLDER", tmp_path / "absent")
    assert identity.describe_computation().split("; ")[0] == processor.removesuffix(" 48K/32K/1M")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")])
    assert identity.describe_computation().split("; ")[0] == f"{processor.removesuffix(' 48K/32K/1M')} gpu NVIDIA H100"


@pytest.mark.parametrize(
    ("recorded", "is_equal"),
    [
        (MACHINE, True),
        ("x86_64 avx2 fma; jaxlib 0.10.2; numba 0.68.1", True),  # of a version that did not name the caches
        ("x86_64 avx2 fma 32K/32K/1024K/32768K; jaxlib 0.10.2; numba 0.68.1", False),
        ("x86_64 avx2; jaxlib 0.10.2; numba 0.68.1", False),
        ("x86_64 avx2 fma; jaxlib 0.10.1; numba 0.68.1", False),
        ("x86_64 avx2 fma 48K/32K/1024K/32768K; jaxlib 0.10.2; XLA", False),
    ],
)
def test_equal_machines_compute_equal_weights(recorded, is_equal):
    assert computes_equally(MACHINE, recorded) == is_equal
