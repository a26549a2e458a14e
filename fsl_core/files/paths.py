"""What callers may give where a file or folder is meant."""

from pathlib import Path

AnyPath = str | Path
