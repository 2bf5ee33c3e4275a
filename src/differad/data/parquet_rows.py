"""Streams the rows of an untrusted Parquet file in bounded memory.

Knows nothing about pairs. An image is bytes, or the struct of the datasets library: `{bytes, path}`.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from differad.errors import ManifestError, MissingExtraError

# A row group that unpacks to more bytes than this, and to this multiple of its size, holds no images, which do not compress.
_MAX_UNPACKED, _MAX_RATIO = 64 << 20, 20
_REMEDY = "write the shard again"


def require_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises MissingExtraError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Parquet", "data", "pyarrow") from None
    return pyarrow, pyarrow.parquet


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a file as Python values by column. Raises ManifestError, MissingExtraError."""
    arrow, parquet = require_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            _check_sizes(file.metadata, path)
            _check_names(file.schema_arrow.names, path)
            # Row by row, since a value that is stored once may be repeated in every row.
            for batch in file.iter_batches(batch_size=1):
                yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise ManifestError(f"{path}: not a complete Parquet file ({error}); {_REMEDY}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({_reason(error)}); expected Parquet, so {_REMEDY}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise ManifestError(
            f"{path}: holds a value that Python has no type for ({error}); {_REMEDY} without it"
        ) from None


def image_bytes(value: Any, where: str) -> bytes | None:
    """The bytes of the image file in a cell, None for an empty cell. Raises ManifestError."""
    is_image = isinstance(value, dict) and value.keys() == {"bytes", "path"}
    content = value["bytes"] if is_image else value
    if isinstance(content, bytes):
        return content
    if value is None or (is_image and content is None and value["path"] is None):
        return None
    if is_image and content is None:
        raise ManifestError(
            f"{where}: holds the path of an image; expected its bytes (the datasets library: embed_external_files)"
        )
    raise ManifestError(
        f"{where}: holds a {type(value).__name__}; expected the bytes of an image file, or a struct of bytes and path"
    )


def _check_sizes(metadata: Any, path: Path) -> None:
    """Raise ManifestError if a small file unpacks to far more bytes."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        unpacked, packed = (
            sum(getattr(column, name) for column in columns)
            for name in ("total_uncompressed_size", "total_compressed_size")
        )
        if unpacked > _MAX_UNPACKED and unpacked > _MAX_RATIO * max(packed, 1):
            raise ManifestError(
                f"{path}: row group {number} unpacks from {packed} to {unpacked} bytes; expected images that are compressed "
                "already, as PNG or JPEG are"
            )


def _check_names(names: Sequence[str], path: Path) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ManifestError(f"{path}: column {repeated!r} occurs twice; expected each column once")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
