"""`ontogeny` as if another version of optax were installed: `python upgraded.py VERSION COMMAND ...`.

It is another kind of computation for the server, although the learned weights are bitwise equal.
"""

import importlib.metadata
import runpy
import sys

if __name__ == "__main__":
    installed_version = importlib.metadata.version
    optax_version = sys.argv.pop(1)
    importlib.metadata.version = lambda name: optax_version if name == "optax" else installed_version(name)
    runpy.run_module("ontogeny", run_name="__main__", alter_sys=True)
