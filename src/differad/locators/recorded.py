"""A decoding step recorded as a CUDA graph: the kernels of a token are launched once and replayed by the GPU.

Python takes longer to launch the kernels of one token of a group than a GPU takes to run them (docs/gpu.md). Only the language
model's layers are recorded; embedding, sampling and stopping stay in `generate`. A step that cannot be recorded (experts that are
chosen on the host) runs kernel by kernel.

Knows nothing of prompts, masks or trainers. Raises nothing of its own.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_STEP_INPUTS = ("inputs_embeds", "position_ids")


class RecordedStep:
    """Replaces a decoder's `forward` for single tokens.

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
        # Autocast caches cast weights until its outermost context ends. A recorded step may read that cache only if such a
        # context surrounds all steps.
        self._uses_autocast_cache = torch.is_autocast_enabled("cuda")
        self._inputs: dict[str, Any] = {}
        self._graph: Any = None
        self._output: Any = None

    def __call__(self, *_: Any, **inputs: Any) -> Any:
        """The decoder's output for one more token of each row; it is overwritten by the next call."""
        if not self._inputs:
            # The grouped attention ignores a mask for rows of tokens, and building one would synchronise with the device.
            self._inputs = {**inputs, "attention_mask": None} | {name: inputs[name].clone() for name in _STEP_INPUTS}
            if self._record:
                self._graph = self._try_to_record()
        for name in _STEP_INPUTS:
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
        """The graph of a step; None if it cannot be recorded."""
        graph: Any = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.cuda.stream(stream), torch.autocast("cuda", dtype, enabled, cache_enabled=self._uses_autocast_cache):
            self._step()  # libraries initialise at their first call, which cannot be recorded
            self._rewind()
            try:
                # Not with `torch.cuda.graph`, which empties the allocator's cache each time.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._output = self._step()
                finally:
                    graph.capture_end()
            except RuntimeError as error:  # a step that reads a number from the device cannot be recorded
                warnings.warn(f"decoding goes kernel by kernel: {_line(error)}", RuntimeWarning, stacklevel=2)
                graph = None
        torch.cuda.current_stream().wait_stream(stream)
        return graph


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def stepping(decoder: Any, step: RecordedStep, taken: Callable[[], None]) -> Iterator[None]:
    """Within the context, a decoder runs single tokens by `step`; `taken` is called after each."""
    stock, instance_forward = decoder.forward, vars(decoder).get("forward")

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
        if instance_forward is not None:
            decoder.forward = instance_forward
