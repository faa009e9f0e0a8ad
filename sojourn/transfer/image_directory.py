"""The directory of one migration on a host: its tmpfs with images, its logs and its lock.

``/run/sojourn/<id>/images``      tmpfs; memory pages and small images
``/run/sojourn/<id>/work``        CRIU's logs and statistics; they outlive the images
``/run/sojourn/<id>/lock``        serializes deliveries of the migration
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import ImagesIncomplete
from sojourn.system.mounts import Tmpfs, unmount
from sojourn.transfer.channel import Manifest

#: The most that images other than memory pages take, for a tree of ordinary size.
SMALL_IMAGES_BYTES = 64 * 2**20

#: Pages are stored together with a map, and a tmpfs counts whole pages and its own inodes.
OVERHEAD = 1.05


@dataclass(frozen=True)
class ImageDirectory:
    """Where one migration keeps its images on this host."""

    place: Path

    @property
    def images(self) -> Path:
        """The tmpfs."""
        return self.place / "images"

    @property
    def work(self) -> Path:
        """Logs and statistics."""
        return self.place / "work"

    @property
    def waits(self) -> Path:
        """The system calls in which the tree's threads were seen before the freeze."""
        return self.work / "waits.json"

    @property
    def lock(self) -> Path:
        """The file that a delivery of this migration locks."""
        return self.place / "lock"

    def make(self, size_bytes: int) -> Tmpfs:
        """Create the directories and mount the tmpfs. Idempotent. Raises CommandFailed."""
        self.work.mkdir(mode=0o700, parents=True, exist_ok=True)
        tmpfs = Tmpfs(self.images, size_bytes)
        tmpfs.mount()
        return tmpfs

    def remove(self) -> None:
        """Release the tmpfs and its memory; the logs stay. Idempotent."""
        unmount(self.images)

    def files(self) -> list[Path]:
        """Return the images in the directory, by name."""
        return sorted(path for path in self.images.iterdir() if path.is_file())

    def check(self, manifest: Manifest) -> None:
        """Raise ImagesIncomplete if a file of the manifest is missing or has another size.

        CRIU itself does not check this: a truncated image makes its restore hang forever.
        """
        for name, size in manifest.items():
            path = self.images / name
            here = path.stat().st_size if path.exists() else None
            if here != size:
                found = "is missing" if here is None else f"has {here} bytes instead of {size}"
                raise ImagesIncomplete(
                    f"The image {name} {found}.", "The copy is incomplete; migrate again."
                )


def size_for(tree_bytes: int) -> int:
    """Return how large the tmpfs must be for a tree with this much memory."""
    return int(tree_bytes * OVERHEAD) + SMALL_IMAGES_BYTES
