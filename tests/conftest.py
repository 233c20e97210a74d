"""Settings for all tests: two host devices, so that what is sharded is tested as sharded; no deadlines per example."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import settings

settings.register_profile("ontogeny", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ontogeny")
