"""A step of decoding recorded as a CUDA graph: the GPU is given the kernels of a token once, and repeats them by itself.

A token of a group is so little work that Python takes longer to launch its kernels than a GPU takes to run them (docs/gpu.md).
Only the language model's layers are recorded; embedding, sampling and stopping stay `generate`'s. What cannot be recorded
(experts that are chosen on the host) runs as it always did.

Knows nothing of prompts, masks or trainers. Raises nothing of its own.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_MOVING = ("inputs_embeds", "position_ids")


class RecordedStep:
    """Stands in for a decoder's `forward` on single tokens.

    `before` and `after` run on the device with each step, `rewind` undoes the steps so far. Without `record` nothing is recorded.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        before: Callable[[], None],
        after: Callable[[], None],
        rewind: Callable[[], None],
        *,
        record: bool,
    ) -> None:
        self._forward, self._before, self._after, self._rewind = forward, before, after, rewind
        self._record = record
        # What autocast turns into another precision it keeps until its outermost context ends. A recorded step may read that only
        # where such a context is about all steps.
        self._reads_kept = torch.is_autocast_enabled("cuda")
        self._inputs: dict[str, Any] = {}
        self._graph: Any = None
        self._output: Any = None

    def __call__(self, *_: Any, **inputs: Any) -> Any:
        """The decoder's output for one more token of each row; it is overwritten by the next call."""
        if not self._inputs:
            # A mask for rows of tokens says nothing to an attention of groups, and its making asks the device.
            self._inputs = {**inputs, "attention_mask": None} | {name: inputs[name].clone() for name in _MOVING}
            if self._record:
                self._graph = self._try_to_record()
        for name in _MOVING:
            self._inputs[name].copy_(inputs[name])
        if self._graph is None:
            self._output = self._step()
        else:
            self._graph.replay()
        return self._output

    def _step(self) -> Any:
        self._before()
        output = self._forward(**self._inputs)
        self._after()
        return output

    def _try_to_record(self) -> Any:
        """The graph of a step; None where a step cannot be recorded."""
        graph: Any = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.cuda.stream(stream), torch.autocast("cuda", dtype, enabled, cache_enabled=self._reads_kept):
            self._step()  # libraries make what they need at their first call, which cannot be recorded
            self._rewind()
            try:
                # Not by `torch.cuda.graph`, which empties the allocator's cache each time.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._output = self._step()
                finally:
                    graph.capture_end()
            except RuntimeError as error:  # what asks the device for a number cannot be recorded
                warnings.warn(f"decoding goes kernel by kernel: {_line(error)}", RuntimeWarning, stacklevel=2)
                graph = None
        torch.cuda.current_stream().wait_stream(stream)
        return graph


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def stepping(decoder: Any, step: RecordedStep, taken: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a decoder takes single tokens by `step`; `taken` is called after each."""
    stock, own = decoder.forward, vars(decoder).get("forward")

    def forward(*inputs: Any, **named: Any) -> Any:
        embeds: Tensor = named["inputs_embeds"]
        if embeds.shape[1] != 1:
            return stock(*inputs, **named)
        output = step(*inputs, **named)
        taken()
        return output

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
        if own is not None:
            decoder.forward = own
