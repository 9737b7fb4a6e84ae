# SPDX-License-Identifier: GPL-2.0-or-later
"""Hatchling's build hook: compiles guestemu's C when it is installed.

A wheel gets the libraries, an editable install builds them in place. Where nothing can be compiled
the installation goes on without them: guestemu then runs the Python bodies and says so (`guestemu
doctor`). `GUESTEMU_NATIVE=off` asks for that.
"""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeCode(BuildHookInterface):
    """See the module's docstring."""

    def _build(self) -> dict[str, Any]:
        return runpy.run_path(str(Path(self.root, "guestemu", "native", "build.py")))

    def dependencies(self) -> list[str]:
        """A compiler from PyPI, where the system has none."""
        build = self._build()
        if build["is_off"]() or build["find_compiler"]() is not None:
            return []
        return [build["ZIG"]]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; the wheel is then for this platform, but for every Python."""
        build = self._build()
        if self.target_name != "wheel" or build["is_off"]():
            return
        try:
            build["build_missing"]()
        except build["BuildError"] as error:
            self.app.display_warning(f"guestemu is installed without machine code: {error}")
            return
        if version == "standard":
            build_data["artifacts"] += ["/guestemu/native/*.so", "/guestemu/native/*.guest"]
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
