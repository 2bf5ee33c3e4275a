"""Batches of prompts with their pictures, and a memory of what a frozen vision tower makes of them.

Pictures of one prompt belong together: a tower may compare them, so they are looked at, and remembered, row by row as a
whole. Knows nothing of answers, losses or trainers.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

# Patches (N, D) and grids (M, 3) of the pictures of one prompt.
Row = tuple[Tensor, Tensor]
# Features of the pictures of one prompt, a tensor each: those that join the text, then those of each deepstack level.
Levels = list[tuple[Tensor, ...]]
_MIB = 1 << 20
# Integers as wide as a number of so many bytes.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of a batch of prompts as a Qwen-VL takes them.

    `patches` (N, D) of all pictures, `grids` (M, 3) their patches in time, height and width, `counts` pictures per row.
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
        """The pictures of consecutive rows."""
        begin, end = sum(self.counts[: rows.start]), sum(self.counts[: rows.stop])
        first, last = (int(self.grids[:place].prod(dim=1).sum()) for place in (begin, end))
        return Pictures(self.patches[first:last], self.grids[begin:end], self.counts[rows])


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens and their pictures: `ids`, `mask`, `types` (1 for a picture's token), each (B, L)."""

    ids: Tensor
    mask: Tensor
    types: Tensor
    pictures: Pictures

    def take(self, rows: slice) -> "Batch":
        """Consecutive rows."""
        return Batch(self.ids[rows], self.mask[rows], self.types[rows], self.pictures.take(rows))

    def until(self, column: int) -> "Batch":
        """The rows without what stands from `column` on, their pictures whole."""
        return Batch(self.ids[:, :column], self.mask[:, :column], self.types[:, :column], self.pictures)


def join(rows: list[Row]) -> dict[str, Tensor]:
    """The pictures of some rows as a model takes them."""
    return {
        "pixel_values": torch.cat([patches for patches, _ in rows]),
        "image_grid_thw": torch.cat([grids for _, grids in rows]),
    }


def picture_inputs(rows: list[Row], memory: "PictureMemory | None") -> dict[str, Any]:
    """What a model takes of the pictures of some rows: pixels, or features where a memory serves."""
    if memory is None or not memory.serves():
        return join(rows)
    grids = torch.cat([grids for _, grids in rows])
    return {"mm_encoder_outputs": {"image": memory.features(rows)}, "image_grid_thw": grids}


class PictureMemory:
    """What `model` makes of pictures, up to `limit_mb` MiB on its device; what was not used for longest goes first.

    Features are those of the model's own `get_image_features`, called with all pictures of whole rows and without gradients.
    A change of the tower's weights empties the memory.
    """

    def __init__(self, model: Any, limit_mb: int) -> None:
        self._model = model
        self._limit = limit_mb * _MIB
        self._kept: OrderedDict[bytes, Levels] = OrderedDict()
        self._size = 0
        self._weights: list[tuple[int, int]] = []
        self._output: type[Any] = BaseModelOutputWithPooling

    def __len__(self) -> int:
        """How many rows are remembered."""
        return len(self._kept)

    def serves(self) -> bool:
        """Whether remembered features are what the tower would give again: its weights are frozen, nothing is random."""
        visual = self._model.model.visual
        return self._limit > 0 and not any(p.requires_grad for p in visual.parameters()) and not is_random(visual)

    def features(self, rows: list[Row]) -> Any:
        """What `get_image_features` gives for the pictures of all `rows`; only rows that are new are looked at."""
        self._watch(self._model.model.visual)
        keys = [_key(*row) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key not in missing}
        if missing:
            self._output, looked = _look(self._model, list(missing.values()))
            found |= zip(missing, looked, strict=True)
        for key, levels in found.items():
            self._keep(key, levels)
        pooled, *deep = (sum(parts, ()) for parts in zip(*(found[key] for key in keys), strict=True))
        return self._output(pooler_output=pooled, **({"deepstack_features": deep} if deep else {}))

    def _keep(self, key: bytes, levels: Levels) -> None:
        if _bytes(levels) > self._limit:
            return
        if key not in self._kept:
            self._kept[key] = levels
            self._size += _bytes(levels)
        self._kept.move_to_end(key)
        while self._size > self._limit:
            self._size -= _bytes(self._kept.popitem(last=False)[1])

    def _watch(self, visual: nn.Module) -> None:
        weights = state_of(visual)
        if weights != self._weights:
            self._kept.clear()
            self._weights, self._size = weights, 0


def state_of(visual: nn.Module) -> list[tuple[int, int]]:
    """What changes when any weight of a tower does: in place, an optimiser or a loaded checkpoint counts its version up."""
    return [(id(weight), weight._version) for weight in visual.parameters()]


def same_tower(first: Any, second: Any) -> bool:
    """Whether two models see alike, so that one memory serves both."""
    one, two = first.model.visual.state_dict(), second.model.visual.state_dict()
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


@torch.no_grad()
def _look(model: Any, rows: list[Row]) -> tuple[type[Any], list[Levels]]:
    """The class of a model's image features, and those of each row's images, copied, so that no row keeps its neighbours."""
    output = model.get_image_features(**join(rows), return_dict=True)
    levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    bounds = list(pairwise(accumulate((len(grids) for _, grids in rows), initial=0)))
    features = [[tuple(part.clone() for part in level[begin:end]) for level in levels] for begin, end in bounds]
    return type(output), features


def _key(patches: Tensor, grids: Tensor) -> bytes:
    """Digest of the content, and of the precision in which it is looked at."""
    facts = (patches.dtype, tuple(patches.shape), grids.tolist(), torch.is_autocast_enabled(patches.device.type))
    digest = hashlib.blake2b(str(facts).encode(), digest_size=16)
    if patches.device.type == "cpu":
        digest.update(patches.detach().contiguous().view(torch.uint8).numpy())
    else:  # a copy to the host, and its hash there, would take longer than many passes over the images
        digest.update(str(content_sums(patches)).encode())
    return digest.digest()


@torch.no_grad()
def content_sums(values: Tensor) -> list[int]:
    """Two sums modulo 2^64 that tell contents (N, D) apart: of each number's bits times fixed random ones of its row and column.

    They are made on the values' own device. Two contents that differ have the same pair by chance alone, about once in 2^96 (the
    zero bits at the end of floats cost some).
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


def is_random(model: nn.Module) -> bool:
    """Whether a model drops out anything as it is."""
    return model.training and drops_out(model)


def drops_out(model: nn.Module) -> bool:
    """Whether a model drops out anything while it trains."""
    return any(
        getattr(module, name, 0.0) for module in model.modules() for name in ("attention_dropout", "p", "drop_prob")
    )
