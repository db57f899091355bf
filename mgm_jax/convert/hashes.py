"""Which files a conversion read: their sha256, for the provenance."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path


class Hashes(threading.Thread):
    """sha256 of files, computed while they are converted."""

    def __init__(self, files):
        super().__init__(daemon=True)
        self.sums = {str(f): "" for f in files}

    def run(self):
        for file in self.sums:
            with open(file, "rb", buffering=0) as stream:
                self.sums[file] = hashlib.file_digest(stream, "sha256").hexdigest()

    def result(self) -> dict[str, str]:
        self.join()
        if not all(self.sums.values()):
            raise ValueError(f"{next(f for f, s in self.sums.items() if not s)}: cannot be read")
        return {"/".join(Path(f).parts[-2:]): s for f, s in self.sums.items()}
