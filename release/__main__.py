"""`python -m release FOLDER`: build and check every package."""

import sys
from pathlib import Path

from release.dist import build, faults

files = build(Path(sys.argv[1]))
found = [fault for file in files for fault in faults(file)]
for file in files:
    print(f"{file.name}  {file.stat().st_size / 1024:.0f} KiB")
sys.exit("\n".join(found) if found else 0)
