"""Print the releases of a test run: `python scripts/versions.py [--against constraints.txt]`.

Prints the name and version of every package of the environment; with --against, only those that differ from the pinned set.
"""

import argparse
import platform
import re
from importlib.metadata import distributions
from pathlib import Path


def canonical(name: str) -> str:
    """A package's normalised name: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    """Versions of a constraints file by canonical name."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def differing(installed: dict[str, str], pins: dict[str, str]) -> list[str]:
    """One line per package with another version than pinned; a build label (+cpu) is ignored."""
    return [
        f"{name} {version} (pinned: {pins.get(name, 'not at all')})"
        for name, version in sorted(installed.items())
        if version.partition("+")[0] != pins.get(name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a constraints file; print only what differs from it")
    against = parser.parse_args().against
    installed = {canonical(package.metadata["Name"]): package.version for package in distributions()}
    if against is None:
        print(f"Python {platform.python_version()}:", *(f"{name}=={installed[name]}" for name in sorted(installed)))
        return
    pins = pinned(against)
    pinned_packages = {name: version for name, version in installed.items() if name in pins}
    print(f"The tests failed on Python {platform.python_version()}. These releases differ from {against}:")
    print(*(differing(pinned_packages, pins) or ["none"]), sep="\n")


if __name__ == "__main__":
    main()
