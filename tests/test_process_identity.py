"""What a version records about the machine and the packages that computed it."""

from types import SimpleNamespace

import jax
import pytest

from ontogeny.server.processes import identity
from ontogeny.server.processes.identity import computes_equally

PACKAGES = "ontogeny 0.1.0; jax 0.10.2; jaxlib 0.10.2; numpy 2.4.6; optax 0.2.8; numba 0.68.1"
MACHINE = f"x86_64 avx2 fma 48K/32K/1024K/32768K; {PACKAGES}"


def test_the_description_names_instructions_caches_and_packages(tmp_path, monkeypatch):
    for number, size in enumerate(("48K\n", "32K\n", "1M\n")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size)
    monkeypatch.setattr(identity, "CACHE_FOLDER", tmp_path)
    processor, *packages = identity.describe_computation().split("; ")
    assert processor.endswith(" 48K/32K/1M") and [package.partition(" ")[0] for package in packages[:-1]] == [
        "ontogeny", "jax", "jaxlib", "numpy", "optax",
    ]  # fmt: skip
    monkeypatch.setattr(identity, "CACHE_FOLDER", tmp_path / "absent")
    assert identity.describe_computation().split("; ")[0] == processor.removesuffix(" 48K/32K/1M")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")])
    assert identity.describe_computation().split("; ")[0] == f"{processor.removesuffix(' 48K/32K/1M')} gpu NVIDIA H100"


@pytest.mark.parametrize(
    ("recorded", "is_equal"),
    [
        (MACHINE, True),
        (f"x86_64 avx2 fma; {PACKAGES}", True),  # of a version that did not name the caches
        ("x86_64 avx2 fma; jaxlib 0.10.2; numba 0.68.1", True),  # nor all packages
        (f"unknown processor; {PACKAGES}", True),
        (MACHINE.replace("jax 0.10.2", "jax 0.10.3"), False),
        (MACHINE.replace("ontogeny 0.1.0", "ontogeny 0.2.0"), False),
        (f"{MACHINE}; flax 0.1", False),
        ("x86_64 avx2 fma 32K/32K/1024K/32768K; jaxlib 0.10.2; numba 0.68.1", False),
        ("x86_64 avx2; jaxlib 0.10.2; numba 0.68.1", False),
        ("x86_64 avx2 fma; jaxlib 0.10.1; numba 0.68.1", False),
        ("x86_64 avx2 fma 48K/32K/1024K/32768K; jaxlib 0.10.2; XLA", False),
    ],
)
def test_equal_machines_compute_equal_weights(recorded, is_equal):
    assert computes_equally(MACHINE, recorded) == is_equal
