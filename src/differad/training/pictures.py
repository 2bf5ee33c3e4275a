"""Batches of prompts with their images, and a cache of a frozen vision tower's features.

The images of one prompt are encoded and cached as a unit, because a tower may compare them. Knows nothing of completions,
losses or trainers.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

# Patches (N, D) and grids (M, 3) of the images of one prompt.
Row = tuple[Tensor, Tensor]
# Features of the images of one prompt, one tensor per image: first those inserted into the text, then each deepstack level.
Levels = list[tuple[Tensor, ...]]
_MIB = 1 << 20
# The integer type for each item size in bytes.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of a batch of prompts in the form that a Qwen-VL takes.

    `patches` (N, D) of all images, `grids` (M, 3) each image's patches in time, height and width, `counts` images per row.
    """

    patches: Tensor
    grids: Tensor
    counts: list[int]

    def rows(self) -> list[Row]:
        """Patches and grids of each row."""
        grids = torch.split(self.grids, self.counts)
        lengths = [int(grid.prod(dim=1).sum()) for grid in grids]
        return list(zip(torch.split(self.patches, lengths), grids, strict=True))

    def take(self, rows: slice) -> "Pictures":
        """The images of consecutive rows."""
        begin, end = sum(self.counts[: rows.start]), sum(self.counts[: rows.stop])
        first, last = (int(self.grids[:image].prod(dim=1).sum()) for image in (begin, end))
        return Pictures(self.patches[first:last], self.grids[begin:end], self.counts[rows])


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens and their images: `ids`, `mask`, `types` (1 for an image token), each (B, L)."""

    ids: Tensor
    mask: Tensor
    types: Tensor
    pictures: Pictures

    def take(self, rows: slice) -> "Batch":
        """Consecutive rows."""
        return Batch(self.ids[rows], self.mask[rows], self.types[rows], self.pictures.take(rows))

    def until(self, column: int) -> "Batch":
        """The rows' tokens before `column`, with all their images."""
        return Batch(self.ids[:, :column], self.mask[:, :column], self.types[:, :column], self.pictures)


def join(rows: list[Row]) -> dict[str, Tensor]:
    """The images of some rows as model inputs."""
    return {
        "pixel_values": torch.cat([patches for patches, _ in rows]),
        "image_grid_thw": torch.cat([grids for _, grids in rows]),
    }


def image_inputs(rows: list[Row], cache: "VisionFeatureCache | None") -> dict[str, Any]:
    """Model inputs for the images of some rows: pixels, or features if the cache can be used."""
    if cache is None or not cache.is_usable():
        return join(rows)
    grids = torch.cat([grids for _, grids in rows])
    return {"mm_encoder_outputs": {"image": cache.features(rows)}, "image_grid_thw": grids}


class VisionFeatureCache:
    """LRU cache of a model's image features, up to `limit_mb` MiB on its device.

    Features come from the model's own `get_image_features`, called with all images of whole rows and without gradients.
    A change of the tower's weights empties the cache.
    """

    def __init__(self, model: Any, limit_mb: int) -> None:
        self._model = model
        self._limit = limit_mb * _MIB
        self._entries: OrderedDict[bytes, Levels] = OrderedDict()
        self._size = 0
        self._versions: list[tuple[int, int]] = []
        self._output: type[Any] = BaseModelOutputWithPooling

    def __len__(self) -> int:
        """Number of cached rows."""
        return len(self._entries)

    def is_usable(self) -> bool:
        """Whether the tower would compute the same features again: its weights are frozen and no dropout is active."""
        visual = self._model.model.visual
        return (
            self._limit > 0 and not any(p.requires_grad for p in visual.parameters()) and not has_active_dropout(visual)
        )

    def features(self, rows: list[Row]) -> Any:
        """What `get_image_features` returns for the images of all `rows`; only missing rows are encoded."""
        self._clear_if_stale(self._model.model.visual)
        keys = [_content_key(*row) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._entries}
        features = {key: self._entries[key] for key in keys if key not in missing}
        if missing:
            self._output, encoded = _encode(self._model, list(missing.values()))
            features |= zip(missing, encoded, strict=True)
        for key, levels in features.items():
            self._put(key, levels)
        pooled, *deep = (sum(parts, ()) for parts in zip(*(features[key] for key in keys), strict=True))
        return self._output(pooler_output=pooled, **({"deepstack_features": deep} if deep else {}))

    def _put(self, key: bytes, levels: Levels) -> None:
        if _bytes(levels) > self._limit:
            return
        if key not in self._entries:
            self._entries[key] = levels
            self._size += _bytes(levels)
        self._entries.move_to_end(key)
        while self._size > self._limit:
            self._size -= _bytes(self._entries.popitem(last=False)[1])

    def _clear_if_stale(self, visual: nn.Module) -> None:
        versions = weight_versions(visual)
        if versions != self._versions:
            self._entries.clear()
            self._versions, self._size = versions, 0


def weight_versions(visual: nn.Module) -> list[tuple[int, int]]:
    """Identity and version of each weight of a tower: an optimiser step or a loaded checkpoint increases the version in place."""
    return [(id(weight), weight._version) for weight in visual.parameters()]


def have_same_vision_weights(first: Any, second: Any) -> bool:
    """Whether two models have equal vision towers, so that they can share one cache."""
    one, two = first.model.visual.state_dict(), second.model.visual.state_dict()
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


@torch.no_grad()
def _encode(model: Any, rows: list[Row]) -> tuple[type[Any], list[Levels]]:
    """The class of a model's image features, and each row's features, copied so that no row keeps the whole batch in memory."""
    output = model.get_image_features(**join(rows), return_dict=True)
    levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    bounds = list(pairwise(accumulate((len(grids) for _, grids in rows), initial=0)))
    features = [[tuple(part.clone() for part in level[begin:end]) for level in levels] for begin, end in bounds]
    return type(output), features


def _content_key(patches: Tensor, grids: Tensor) -> bytes:
    """BLAKE2b-128 of the patches, their shapes and the precision of encoding."""
    metadata = (patches.dtype, tuple(patches.shape), grids.tolist(), torch.is_autocast_enabled(patches.device.type))
    digest = hashlib.blake2b(str(metadata).encode(), digest_size=16)
    if patches.device.type == "cpu":
        digest.update(patches.detach().contiguous().view(torch.uint8).numpy())
    else:  # copying to the host and hashing there would take longer than many passes over the images
        digest.update(str(content_sums(patches)).encode())
    return digest.digest()


@torch.no_grad()
def content_sums(values: Tensor) -> list[int]:
    """Two 64-bit checksums of values (N, D): sums of each number's bits times fixed random numbers of its row and column.

    They are computed on the values' own device. Different values collide with a probability of about 2^-96 (trailing zero bits of
    floats cost some).
    """
    bits = values.contiguous().view(_INTEGERS[values.element_size()]).long()
    random = torch.Generator().manual_seed(0)
    sums = []
    for _ in range(2):
        by_row, by_column = (torch.randint(-(1 << 63), (1 << 63) - 1, (n,), generator=random) for n in bits.shape)
        of_rows = (bits * by_column.to(bits.device)).sum(dim=1)
        sums.append((of_rows * by_row.to(bits.device)).sum())
    return [int(value) for value in torch.stack(sums).tolist()]


def _bytes(levels: Levels) -> int:
    return sum(part.nbytes for level in levels for part in level)


def has_active_dropout(model: nn.Module) -> bool:
    """Whether a model is in training mode and has dropout."""
    return model.training and has_dropout(model)


def has_dropout(model: nn.Module) -> bool:
    """Whether a model has any dropout in training mode."""
    return any(
        getattr(module, name, 0.0) for module in model.modules() for name in ("attention_dropout", "p", "drop_prob")
    )
