"""Recipes: the settings of a training run in YAML, with `key=value` overrides, validated before anything is loaded.

A recipe may extend another (`base: ../base/sft.yaml`, relative to itself); paths of data and checkpoints are relative to the
working folder. Every error names the file and the key. Knows nothing of torch or TRL.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from differad.answers.formats import FORMATS
from differad.data.yaml_text import load_yaml
from differad.errors import InputError, OptionError, shortened
from differad.locators.tiny import WEIGHTS, TinyLocator
from differad.training.localization import DEFAULT_VARIANT, VARIANTS

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
# Length limit of a YAML parser's reason in a message.
_REASON = 200
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Part of a recipe; a key that it does not name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scratch(Section):
    """A small, randomly initialised Qwen2-VL for runs on a CPU; its tokenizer is trained on the prompts."""

    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    vision_depth: Positive = 3
    vision_size: Positive = 96
    vocabulary: Annotated[int, Field(ge=400)] = 1000

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        for name, size in (("hidden_size", self.hidden_size), ("vision_size", self.vision_size)):
            if size % self.heads or (size // self.heads) % 8:
                raise ValueError(f"{name} {size} over {self.heads} heads: expected a multiple of 8 for each head")
        return self


class Tiny(Section):
    """The embedded policy, randomly initialised: a small Qwen2-VL on pair features of a frozen backbone (locators/tiny)."""

    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    channels: Annotated[int, Field(ge=4, multiple_of=4)] = 32
    blocks: Positive = 3
    # Steps of box pretraining (training/reading.py) before training on images.
    reading: Annotated[int, Field(ge=0)] = 0
    # A checkpoint of an earlier run whose change encoder (not its language model) is copied.
    comparer: Path | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 8:
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.heads} heads: expected a multiple of 8 for each head"
            )
        return self


class Lora(Section):
    """Low-rank adapters on the language model's linear layers; the exported model has them merged."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0
    # The layers' names in all families; names that a model lacks are ignored.
    targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"),
        *("in_proj", "in_proj_qkv", "in_proj_z"),
    )


class Model(Section):
    """The policy that the run starts from: a checkpoint folder, a hub id, `tiny` (the shipped one), or random initialisation.

    `family` is its answer format if the model type does not imply one.
    """

    checkpoint: str | None = None
    scratch: Scratch | None = None
    tiny: Tiny | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: str | None = None
    family: str | None = None
    freeze_vision: bool = True
    lora: Lora | None = None
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None

    @property
    def start(self) -> str | None:
        """The checkpoint's folder or hub id, for `tiny` the shipped policy's folder; None for random initialisation."""
        return str(WEIGHTS) if self.checkpoint == TinyLocator.name else self.checkpoint

    @model_validator(mode="after")
    def _known_family(self) -> Self:
        if self.family is not None and self.family not in FORMATS:
            raise ValueError(f"family {self.family!r} is not known; expected one of {', '.join(FORMATS)}")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if [self.checkpoint, self.scratch, self.tiny].count(None) != 2:
            raise ValueError("expected one of checkpoint, scratch and tiny, not several and not none")
        return self


class Data(Section):
    """The training pairs, and how their prompts and answers are written."""

    pairs: Annotated[tuple[Path, ...], Field(min_length=1)]
    limit: Positive | None = None
    question: Literal["drawn", "fixed"] = "drawn"
    reasoning: bool = True
    seed: Annotated[int, Field(ge=0)] = 0
    # Cache folder for the embedded policy's pair features, computed once per pair and keyed by content.
    evidence: Path | None = None


class HeldOut(Section):
    """Pairs that are never trained on: located every `every` steps and scored as `differad evaluate` does."""

    pairs: tuple[Path, ...] = ()
    every: Positive = 100
    limit: Positive | None = 64
    batch_size: Positive = 8
    max_new_tokens: Positive = 256


class Train(Section):
    """The optimiser's loop. `batch_size` is per device; `more` is passed to TRL's configuration unchanged.

    The run ends after `minutes`, `steps` or `epochs`, whichever comes first. `bf16` runs the model under autocast; None: if the
    device supports it.
    """

    steps: Annotated[int, Field(ge=-1)] = -1
    epochs: NotNegative = 1.0
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bf16: bool | None = None
    batch_size: Positive = 8
    accumulate: Positive = 1
    learning_rate: NotNegative = 1e-5
    schedule: str = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    gradient_checkpointing: bool = True
    workers: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 1
    save_every: Positive = 100
    keep: Positive = 2
    report_to: tuple[str, ...] = ("tensorboard",)
    samples_every: Annotated[int, Field(ge=0)] = 100
    samples: Positive = 6
    more: dict[str, Any] = {}


class Vllm(Section):
    """Answers generated by vLLM, on the training GPUs (colocate) or on others (server: `trl vllm-serve`).

    `max_model_length` limits the tokens of a prompt and its answer; the default fits the longest prompt of the data.
    """

    mode: Literal["colocate", "server"] = "colocate"
    memory_share: Share = 0.3
    tensor_parallel: Positive = 1
    url: str | None = None
    sleep: bool = True
    max_model_length: Positive | None = None


class Grpo(Section):
    """Difficulty-aware GRPO; the defaults are the paper's, except for the reward (see docs/training.md).

    `share_prefix` encodes each distinct prompt once for all its answers. `remember_pictures_mb` limits the cache of a frozen
    vision tower's features on the device, in MiB; 0 turns the cache off.
    """

    generations: Annotated[int, Field(ge=2)] = 8
    max_new_tokens: Positive = 256
    temperature: Annotated[float, Field(gt=0)] = 1.0
    reward: str = DEFAULT_VARIANT
    format_weight: NotNegative = 1.0
    localization_weight: NotNegative = 1.0
    resamples: Annotated[int, Field(ge=0)] = 3
    reweight: bool = True
    kl: NotNegative = 0.04
    clip_low: NotNegative = 0.2
    clip_high: NotNegative = 0.28
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "grpo"
    iterations: Positive = 1
    mask_truncated: bool = True
    share_prefix: bool = True
    remember_pictures_mb: Annotated[int, Field(ge=0)] = 256
    vllm: Vllm | None = None

    @model_validator(mode="after")
    def _known_reward(self) -> Self:
        if self.reward not in VARIANTS:
            raise ValueError(f"reward {self.reward!r} is not known; expected one of {', '.join(VARIANTS)}")
        return self


class Recipe(Section):
    """Keys of both phases. `out` receives checkpoints, curves, samples and, at the end, `model/`."""

    out: Path
    model: Model
    data: Data
    held_out: HeldOut = HeldOut()
    train: Train = Train()


class SftRecipe(Recipe):
    """Supervised cold start."""

    phase: Literal["sft"]


class RlRecipe(Recipe):
    """Reinforcement learning."""

    phase: Literal["rl"]
    grpo: Grpo = Grpo()


AnyRecipe = TypeVar("AnyRecipe", SftRecipe, RlRecipe)


def load_recipe(path: str | Path, kind: type[AnyRecipe], overrides: Sequence[str] = ()) -> AnyRecipe:
    """The recipe at `path` with `key.key=value` overrides, values read as YAML. Raises OptionError naming the key."""
    return _checked(path, kind, _values(path, overrides))


def load_any_recipe(path: str | Path, overrides: Sequence[str] = ()) -> SftRecipe | RlRecipe:
    """As `load_recipe`, for the phase that the recipe names. Raises OptionError naming the key."""
    values = _values(path, overrides)
    return _checked(path, RlRecipe, values) if values.get("phase") == "rl" else _checked(path, SftRecipe, values)


def _values(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    values = _read(Path(path), ())
    for override in overrides:
        _override(values, override)
    return values


def _checked(path: str | Path, kind: type[AnyRecipe], values: Mapping[str, Any]) -> AnyRecipe:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise OptionError(f"{path}: {_explain(error)}") from None


def _read(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """The YAML mapping at `path`, merged over that of its `base`."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}); expected a recipe in YAML") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except InputError as error:
        raise OptionError(f"{path}: {str(error)[:_REASON]}; mend the recipe") from None
    if not isinstance(values, dict):
        raise OptionError(f"{path}: holds {type(values).__name__}; expected a mapping of keys")
    base = values.pop("base", None)
    if base is None:
        return values
    base_path = (path.parent / str(base)).resolve()
    if base_path in extending:
        raise OptionError(f"{path}: base: {base}: builds on itself; expected a recipe that does not name this one")
    return _merge(_read(base_path, (*extending, base_path)), values)


def _merge(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overridden by `values`; nested mappings are merged key by key."""
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise OptionError(f"{override!r}: expected KEY=VALUE, as in train.learning_rate=1e-5")
    try:
        value = load_yaml(text)
    except InputError as error:
        reason = "not YAML" if str(error).startswith("not YAML") else str(error)[:_REASON]
        raise OptionError(f"{shortened(override)}: the value is {reason}; put it in quotes") from None
    *parents, last = key.split(".")
    for parent in parents:
        nested = values.get(parent)
        values[parent] = dict(nested) if isinstance(nested, dict) else {}
        values = values[parent]
    values[last] = value


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: no such key{more}; docs/training.md lists them"
    if first["type"] == "missing":
        return f"{key}: missing{more}"
    value = "" if isinstance(first["input"], dict | BaseModel) else f" {shortened(first['input'])}:"
    return f"{key}:{value} {first['msg'].removeprefix('Value error, ')}{more}"
