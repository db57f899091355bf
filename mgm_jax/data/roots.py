"""Where pictures lie: in one folder, or in several, by the first folder of a picture's path.

{"": "/data", "coco": "gs://bucket/coco"} has the picture coco/train2017/1.jpg in
gs://bucket/coco/train2017/1.jpg, and all pictures under no other key in /data.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping

Roots = str | Mapping[str, str]


def read_roots(images) -> Roots:
    """A folder (text or path), or a mapping of folders, as `place` takes it.

    ValueError for anything else, and for a key of more than one folder.
    """
    if isinstance(images, str | os.PathLike):
        return os.fspath(images)
    try:
        roots = {key: os.fspath(folder) for key, folder in dict(images).items()}
    except (TypeError, ValueError):
        raise ValueError(
            f"images: found {images!r}, expected a folder or {{name: folder}}"
        ) from None
    for key in roots:
        if not isinstance(key, str) or "/" in key:
            raise ValueError(
                f"images: found the key {key!r}, expected a picture path's first folder"
            )
    return roots


def folders(roots: Roots) -> list[str]:
    """All the folders that `roots` names."""
    return [roots] if isinstance(roots, str) else list(roots.values())


def place(roots: Roots, image: str) -> str:
    """The full path of a relative picture path; ValueError for one that is under no key."""
    if isinstance(roots, str):
        return posixpath.join(roots, image)
    first, slash, rest = image.partition("/")
    if slash and first in roots:
        return posixpath.join(roots[first], rest)
    if "" not in roots:
        names = ", ".join(f"{name}/" for name in roots)
        raise ValueError(
            f"image: found {image!r}, expected a path that starts with one of {names} (the picture "
            'folders that are given; a folder for all others has the name "")'
        )
    return posixpath.join(roots[""], image)
