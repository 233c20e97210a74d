"""Import specifications of a user's files, which are compiled as they are now.

Python takes cached bytecode for current if a file has the size and the second of its last change that the cache names.
A file that is edited and loaded again within a second would be the old one.
"""

import importlib.util
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType


class CurrentSourceLoader(SourceFileLoader):
    """Compiles the source on every import, and neither reads nor writes bytecode."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def spec_from_source(module_name: str, path: Path) -> ModuleSpec:
    """Returns the import specification of a file.

    Args:
        module_name: Name of the module in `sys.modules`.
        path: Absolute.
    """
    spec = importlib.util.spec_from_file_location(module_name, path, loader=CurrentSourceLoader(module_name, str(path)))
    assert spec is not None and spec.loader is not None
    return spec
