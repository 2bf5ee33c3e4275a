"""Copies photographs below some folders into one, shrunk to what training needs.

python recipes/tiny/photographs.py data/tiny/photographs /usr/share/wallpapers /usr/share/backgrounds/mate/nature
"""

import sys
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from differad.errors import InputError
from differad.synthesis.normals import list_pictures

# Thumbnails and links to another size of the same picture are left out.
LEAST_BYTES, LEAST_SIDE, LARGEST_SIDE = 60_000, 700, 1400


def main(out: Path, roots: list[Path]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for root in roots:
        for path in list_pictures(root) if root.is_dir() else []:
            if path.is_symlink() or path.stat().st_size < LEAST_BYTES or "screenshot" in path.name:
                continue
            try:
                picture = Image.open(path).convert("RGB")
            except (OSError, UnidentifiedImageError):
                continue
            if min(picture.size) < LEAST_SIDE:
                continue
            picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            name = path.relative_to(root).with_suffix("").as_posix().replace("/", "_")
            picture.save(out / f"{name}.jpg", quality=92)
            count += 1
    if not count:
        raise InputError(f"{', '.join(map(str, roots))}: no photograph of {LEAST_SIDE} pixels or more; see data.sh")
    print(f"{count} photographs in {out}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    except InputError as error:
        sys.exit(f"photographs.py: {error}")
