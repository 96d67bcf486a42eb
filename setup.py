"""What pyproject.toml can't say: the examples' served files go into the wheel, beside the package.

An installed package then has something to serve: `policy-server copy_server_files examples/lpoc`.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_SERVED = ("schema.yaml", "saved_model.zip", "README.md")


class BuildWithExamples(build_py):
    """Copies the package, and into it schema.yaml, saved_model.zip and README.md of each example.

    Attributes:
        build_lib: the folder that becomes the wheel.
    """

    def run(self) -> None:
        """Copy both; an editable installation has the repository's own examples."""
        super().run()
        if self.editable_mode:
            return
        for source, target in self._examples().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_output_mapping(self) -> dict[str, str]:
        """Return which source each copied file has, by its path in the wheel."""
        examples = {target: source for source, target in self._examples().items()}
        return {**super().get_output_mapping(), **examples}

    def _examples(self) -> dict[str, str]:
        files = sorted(file for name in _SERVED for file in Path("examples").glob(f"*/{name}"))
        files = [file for file in files if (file.parent / "saved_model.zip").exists()]
        return {str(file): str(Path(self.build_lib, "policy_server", file)) for file in files}


setup(cmdclass={"build_py": BuildWithExamples})
