"""Builds, checks and describes what leaves this repository.

python -m release build FOLDER      source archives and wheels of every package, checked
python -m release check [TAG]       names, versions and ranges; for a release with this tag
python -m release directory         docs/plugins-directory.md, from its list
"""

import argparse
import sys
from pathlib import Path

from release import directory
from release.dist import build, faults
from release.names import faults_of_all


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build").add_argument("folder", type=Path)
    commands.add_parser("check").add_argument("tag", nargs="?", default="")
    commands.add_parser("directory")
    asked = parser.parse_args()
    found: list[str] = []
    if asked.command == "build":
        files = build(asked.folder)
        found = [fault for file in files for fault in faults(file)]
        for file in files:
            print(f"{file.name}  {file.stat().st_size / 1024:.0f} KiB")
    elif asked.command == "check":
        found = list(faults_of_all(asked.tag))
    else:
        directory.write()
    sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main()
