#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes constraints.txt: for each package that guestemu, its extras, its tests and its build need,
the newest version with wheels for every Python that pyproject.toml names. `make update` runs it.

pip resolves for the oldest Python; for each newer one it must then find wheels of the same
versions, or adds a line for that Python alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
EXTRA_BUILD = ("ziglang",)
"""What the build hook asks for where there is no C compiler."""

HEAD = """\
# SPDX-License-Identifier: GPL-2.0-or-later
# The versions that the tests passed with. `make install` takes these; `make update` renews them.
"""


def requirements(project: dict[str, dict]) -> list[str]:
    """What pyproject.toml asks for: to run, for every extra, to build."""
    extras = project["project"]["optional-dependencies"]
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    needed += [one for extra in extras.values() for one in extra]
    return sorted({*needed, *EXTRA_BUILD})


def pythons(project: dict[str, dict]) -> list[str]:
    """The versions in the classifiers, oldest first."""
    found = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["project"]["classifiers"]))
    return sorted(found, key=lambda version: int(version.partition(".")[2]))


def resolve(needed: list[str], python: str, pins: dict[str, str]) -> dict[str, str]:
    """Version by package, of wheels for `python`. Raises CalledProcessError if there are none."""
    with tempfile.TemporaryDirectory() as scratch:
        fixed = Path(scratch, "pins.txt")
        fixed.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", "--only-binary=:all:", "--report=-"),
                *("--disable-pip-version-check", f"--python-version={python}"),
                *(f"--target={scratch}/nothing", f"--constraint={fixed}", *needed),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    found = {}
    for item in json.loads(done.stdout)["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        found[name] = item["metadata"]["version"]
    return dict(sorted(found.items()))


def main() -> int:
    """See the module's docstring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = requirements(project)
    oldest, *newer = pythons(project)
    try:
        pins = resolve(needed, oldest, {})
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    lines = {name: f"{name}=={version}" for name, version in pins.items()}
    more: list[str] = []
    for python in newer:
        try:
            resolve(needed, python, pins)
            continue
        except subprocess.CalledProcessError as error:
            print(f"Python {python} needs other versions:\n{error.stderr}", file=sys.stderr)
        others = resolve(needed, python, {})
        changed = {name for name, version in others.items() if pins.get(name) != version}
        for name in changed & pins.keys():
            mark = "and" if ";" in lines[name] else ";"
            lines[name] += f" {mark} python_version != '{python}'"
        more += [f"{name}=={others[name]} ; python_version == '{python}'" for name in changed]
    text = "\n".join(sorted([*lines.values(), *more]))
    CONSTRAINTS.write_text(f"{HEAD}{text}\n", encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(lines)} packages for Python {', '.join([oldest, *newer])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
