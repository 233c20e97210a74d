"""Settings for all tests: two host devices, so that what is sharded is tested as sharded; no deadlines per example;
shapes and dtypes of arguments and results checked where functions state them (see `test_shapes.py`)."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(
    [
        "ontogeny.agents.recurrent",
        "ontogeny.agents.recurrent_cells",
        "ontogeny.content",
        "ontogeny.development.policy_gradient",
    ],
    "beartype.beartype",
)

settings.register_profile("ontogeny", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ontogeny")
