"""`transformers serve --port PORT` on the CPU, also where torchvision is not installed.

The stock processors of Qwen-VL build a video processor, which needs torchvision and which images never use. This
script registers them without it and then starts the command's own server.
"""

import sys
from typing import Any

from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    Qwen3VLConfig,
)
from transformers.cli.serve import Serve
from transformers.processing_utils import ProcessorMixin


class PictureProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor of texts and images, without videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(cls, source: str, **kwargs: Any) -> "PictureProcessor":
        tokenizer = AutoTokenizer.from_pretrained(source)
        return cls(AutoImageProcessor.from_pretrained(source, backend="pil"), tokenizer, tokenizer.chat_template)


def main(port: int) -> None:
    for config in (Qwen2VLConfig, Qwen2_5_VLConfig, Qwen3VLConfig):
        AutoProcessor.register(config, PictureProcessor, exist_ok=True)
    Serve(host="127.0.0.1", port=port, device="cpu")


if __name__ == "__main__":
    main(int(sys.argv[1]))
