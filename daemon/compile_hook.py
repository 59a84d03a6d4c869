"""Build hook: with HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 a wheel's hot modules are compiled by mypyc.

The modules, named in pyproject.toml, are those that a command passes through. They are in the wheel
as Python too, which tracebacks show; the interpreter prefers the compiled form. Not among them are
modules with classes that msgspec decodes, since mypyc erases the annotations that it reads, and the
joins of rows, which tell by identity whether something changed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SETUP = """
from mypyc.build import mypycify
from setuptools import setup

flags = ["--follow-imports=silent", "--ignore-missing-imports"]
setup(name="roost", packages=[], ext_modules=mypycify({paths} + flags, opt_level="3"))
"""


class CompileHook(BuildHookInterface[Any]):
    """Compiles into a temporary directory and puts the results into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # the source is what runs
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        for package in self.build_config.target_config["packages"]:
            source = Path(self.root, package)
            shutil.copytree(source, folder / source.name)
        paths = [module.replace(".", "/") + ".py" for module in self.config["modules"]]
        (folder / "setup.py").write_text(_SETUP.format(paths=paths))
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"compiling failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        built = {path: path.relative_to(folder) for path in folder.rglob("*.so")}
        within = {path: at for path, at in built.items() if at.parts[0] != "build"}
        if len(within) != len(paths) + 1:  # one library and a door to it for each module
            raise RuntimeError(f"{len(paths)} modules were compiled to {sorted(within.values())}")
        build_data["force_include"].update({str(path): str(at) for path, at in within.items()})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.cleanup()
