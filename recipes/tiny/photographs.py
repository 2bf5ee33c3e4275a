"""Copies photographs below some folders into one, shrunk to what training needs.

python recipes/tiny/photographs.py data/tiny/photographs /usr/share/wallpapers /usr/share/backgrounds/mate/nature

Ends with one line and exit code 2 where there is none, and leaves no folder behind.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from differad.errors import InputError
from differad.synthesis.normals import list_images

# Thumbnails and links to another size of the same image are left out.
LEAST_BYTES, LEAST_SIDE, LARGEST_SIDE = 60_000, 700, 1400


def candidates(root: Path) -> list[Path]:
    """Image files below `root` that may be photographs, by their size on disk."""
    try:
        paths = list_images(root)
    except InputError:  # no image below it
        return []
    return [
        path
        for path in paths
        if not path.is_symlink() and path.stat().st_size >= LEAST_BYTES and "screenshot" not in path.name
    ]


def copy(path: Path, target: Path) -> bool:
    """Write the image at `path` to `target` as JPEG, shrunk; False where it cannot be read or is too small."""
    try:
        image = Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError):
        return False
    if min(image.size) < LEAST_SIDE:
        return False
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    image.save(target, quality=92)
    return True


def main(out: Path, roots: list[Path]) -> None:
    # The folder gets its name once it is complete: data.sh takes one that is there as it is.
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    count = 0
    for root in roots:
        for path in candidates(root):
            name = path.relative_to(root).with_suffix("").as_posix().replace("/", "_")
            count += copy(path, partial / f"{name}.jpg")
    if not count:
        partial.rmdir()
        print(
            f"differad: {', '.join(map(str, roots))}: no photograph of {LEAST_SIDE} pixels or more; install some (Debian: "
            "apt-get install plasma-workspace-wallpapers mate-backgrounds) or name a folder that holds some: PHOTOGRAPHS=FOLDER",
            file=sys.stderr,
        )
        sys.exit(2)
    partial.rename(out)
    print(f"{count} photographs in {out}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    except InputError as error:
        sys.exit(f"photographs.py: {error}")
