"""The place of one migration on a host: its tmpfs with images, and beside it its logs and lock.

``/run/sojourn/<id>/images``      tmpfs; memory pages and small images
``/run/sojourn/<id>/work``        CRIU's logs and statistics; they outlive the images
``/run/sojourn/<id>/lock``        keeps two deliveries apart
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sojourn.channel import Manifest
from sojourn.errors import ImagesIncomplete
from sojourn.mounts import Tmpfs, unmount

#: What the images other than memory pages take at most, for a tree of ordinary size.
SMALL_IMAGES_BYTES = 64 * 2**20

#: Pages are stored with a map beside them, and a tmpfs accounts whole pages and its own nodes.
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
    def lock(self) -> Path:
        """The file that deliveries of this migration lock."""
        return self.place / "lock"

    def make(self, size_bytes: int) -> Tmpfs:
        """Make the directories and mount the tmpfs. Again is harmless. Raises CommandFailed."""
        self.work.mkdir(mode=0o700, parents=True, exist_ok=True)
        tmpfs = Tmpfs(self.images, size_bytes)
        tmpfs.mount()
        return tmpfs

    def remove(self) -> None:
        """Give the tmpfs and its memory back; the logs stay. Again is harmless."""
        unmount(self.images)

    def files(self) -> list[Path]:
        """Return the images that lie here, by name."""
        return sorted(path for path in self.images.iterdir() if path.is_file())

    def check(self, manifest: Manifest) -> None:
        """Raise ImagesIncomplete if a file of the manifest is missing or has another size.

        CRIU itself does not look: a truncated image makes its restore hang for ever.
        """
        for name, size in manifest.items():
            path = self.images / name
            here = path.stat().st_size if path.exists() else None
            if here != size:
                found = "is missing" if here is None else f"has {here} bytes instead of {size}"
                raise ImagesIncomplete(f"The image {name} {found}.", "The copy was cut short; migrate again.")


def size_for(tree_bytes: int) -> int:
    """Return how large the tmpfs must be that takes a tree of so much memory."""
    return int(tree_bytes * OVERHEAD) + SMALL_IMAGES_BYTES
