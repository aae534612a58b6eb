"""Engine settings: how one model is run. The server pod reads them as they stand here, in `CORRAL_SPEC`."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from corral.api.base import Part
from corral.api.errors import PATTERN_BROKEN, WRONG_TYPE
from corral.api.lists import Unique
from corral.api.source import OptionalSource, Source
from corral.api.types import DECIMAL_PATTERN, MI, Bytes, Rule, Rules

GPU_LAYERS_PATTERN = "^(All|[0-9]{1,6})$"
Number = Annotated[str, Field(max_length=16, pattern=DECIMAL_PATTERN)]
_PLAIN = DECIMAL_PATTERN.replace(r"\.", "[.]")
"""The same, without a backslash: in CEL's strings that would be an escape."""


def _within(low: str, high: str) -> Rules:
    """A decimal between two others, both allowed."""
    rule = Rule(
        # What is no decimal at all is refused by its pattern; to read it as a number would only say so a second time, in worse words.
        cel=f"!self.matches('{_PLAIN}') || (double(self) >= {float(low)} && double(self) <= {float(high)})",
        message=f"it must be a decimal from {low} to {high}, in quotes",
        holds=lambda text: float(low) <= float(text) <= float(high),
    )
    return Rules((rule,))


SYSTEM_PROMPTS = 32768
"""Characters that the system prompts of all presets have together: they reach the pod in one variable of its environment, of at most 128 KiB."""

AdapterName = Annotated[str, Field(max_length=63, min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Share = Annotated[Number, _within("0", "1")]
Penalty = Annotated[Number, _within("-2", "2")]


def _gpu_layers(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError(WRONG_TYPE, "wrong type", {"wanted": "integer,string"})
    if isinstance(value, int) and value < 0:
        raise PydanticCustomError("greater_than_equal", "negative", {"ge": 0})
    if isinstance(value, str) and not re.match(GPU_LAYERS_PATTERN, value):
        raise PydanticCustomError(PATTERN_BROKEN, "no layers", {"pattern": GPU_LAYERS_PATTERN})
    return value if value == "All" else int(value)


GpuLayers = Annotated[
    Literal["All"] | int,
    BeforeValidator(_gpu_layers),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": GPU_LAYERS_PATTERN,
            "maxLength": 8,
            "minimum": 0,
        }
    ),
]


class PromptCache(Part):
    """Prompts that were computed and are kept in host memory, to be found again."""

    size: Bytes = 256 * MI
    """Bytes of host memory per replica; `0` turns it off."""
    keep_on_sleep: bool = True
    """Whether it outlives a sleep of the replica."""


class Draft(Part):
    """Speculative decoding: guesses that the model checks several at a time."""

    source: OptionalSource = ""
    """A small model of the same vocabulary that guesses, by the schemes of `model.source`. Default: none."""
    ngram: bool = False
    """Whether to guess from the text so far instead; costs no memory."""


class Sampling(Part):
    """What a request that does not say gets. Default, field by field: the model file's own value, else llama.cpp's. Decimals are strings."""

    temperature: Annotated[Number, _within("0", "1000")] | None = None
    """0 takes the likeliest token always."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """How many of the likeliest tokens are considered; 0: all."""
    top_p: Share | None = None
    """The share of probability that is considered, 0 to 1."""
    min_p: Share | None = None
    """The least probability, relative to the likeliest token, 0 to 1."""
    typical_p: Share | None = None
    """Locally typical sampling, 0 to 1; 1 turns it off."""
    repeat_penalty: Annotated[Number, _within("0.01", "10")] | None = None
    """Penalty for tokens that were there before; 1 turns it off."""
    repeat_last_n: Annotated[int, Field(ge=-1, le=16_777_216)] | None = None
    """How many of the last tokens the penalties look at; -1: the whole context."""
    presence_penalty: Penalty | None = None
    """OpenAI's, -2 to 2."""
    frequency_penalty: Penalty | None = None
    """OpenAI's, -2 to 2."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] | None = None
    """The random seed; without it each request has its own."""
    max_tokens: Annotated[int, Field(ge=1, le=16_777_216)] | None = None
    """How many tokens an answer may have at most."""


class Adapter(Part):
    """A LoRA adapter, asked for as `MODEL:NAME`."""

    name: AdapterName
    """The part after the colon in a request's `model`."""
    source: Source
    """The adapter's GGUF file, by the schemes of `model.source`."""
    scale: Number = "1.0"
    """How strongly it acts; a decimal in quotes."""


class Preset(Part):
    """A name of its own over the loaded model, asked for as `MODEL:NAME`: what a request to it gets where it does not say."""

    name: AdapterName
    """The part after the colon in a request's `model`."""
    adapter: Annotated[str, Field(max_length=63)] = ""
    """The adapter that it uses, of `engine.adapters`. Default: none."""
    sampling: Sampling | None = None
    """What a request to it that does not say gets; what is left out here comes from `engine.sampling`."""
    reasoning_effort: Literal["", "None", "Minimal", "Low", "Medium", "High"] = ""
    """How much the model thinks where a request does not say; `None` turns thinking off. Default: the template's own way."""
    system_prompt: Annotated[str, Field(max_length=SYSTEM_PROMPTS)] = ""
    """Said before a conversation that has no system message of its own. Default: nothing."""


class Engine(Part):
    """How the model is run."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.kvTokens) || !has(self.contextLength) || self.kvTokens >= self.contextLength",
            message="kvTokens must be at least contextLength, or a request of full length could never be admitted",
            holds=lambda it: it.kv_tokens is None or it.context_length is None or it.kv_tokens >= it.context_length,
        ),
        Rule(
            cel="!has(self.draft) || !has(self.draft.source) || self.draft.source == '' || !self.draft.ngram",
            message="draft.source and draft.ngram exclude each other",
            holds=lambda it: not (it.draft.source and it.draft.ngram),
        ),
        Rule(
            cel="!has(self.presets) || !has(self.adapters) || self.presets.all(it, !self.adapters.exists(other, other.name == it.name))",
            message="a preset and an adapter cannot have the same name: both are asked for by it",
            holds=lambda it: not {preset.name for preset in it.presets} & {adapter.name for adapter in it.adapters},
        ),
        Rule(
            cel="!has(self.presets) || self.presets.all(it, !has(it.adapter) || it.adapter == '' ||"
            " (has(self.adapters) && self.adapters.exists(other, other.name == it.adapter)))",
            message="a preset's adapter is the name of one of engine.adapters",
            holds=lambda it: {preset.adapter for preset in it.presets} <= {"", *(adapter.name for adapter in it.adapters)},
        ),
        Rule(
            cel=f"!has(self.presets) || self.presets.map(it, has(it.systemPrompt) ? size(it.systemPrompt) : 0).sum() <= {SYSTEM_PROMPTS}",
            message=f"the system prompts of all presets have at most {SYSTEM_PROMPTS} characters together",
            holds=lambda it: sum(len(preset.system_prompt) for preset in it.presets) <= SYSTEM_PROMPTS,
        ),
    )

    context_length: Annotated[int, Field(ge=16, le=16_777_216)] | None = None
    """Tokens that one request may have, prompt and answer together. Default: what the model was trained for, at most 8192."""
    slots: Annotated[int, Field(ge=1, le=256)] = 4
    """Requests that are decoded together."""
    kv_tokens: Annotated[int, Field(ge=16, le=268_435_456)] | None = None
    """Tokens of KV cache that all slots share; a request is admitted when it fits. Default: contextLength times the smaller of slots and 2."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads at most, fewer while others want the same processors; 0: the CPU limit if one is set, else the node's physical cores."""
    micro_batch: Annotated[int, Field(ge=1, le=16384)] = 512
    """Tokens of a prompt that are computed in one step; more is faster and needs more memory."""
    prompt_cache: PromptCache = PromptCache()
    """Prompts that were computed and are kept in host memory, to be found again."""
    draft: Draft = Draft()
    """Speculative decoding."""
    reasoning: Literal["Auto", "None"] = "Auto"
    """How thinking is told apart from the answer: `Auto` by what the chat template uses, into `reasoning_content`; `None` leaves it in the answer."""
    sampling: Sampling | None = None
    """What a request that does not say gets. Default: the model file's own values, else llama.cpp's."""
    kv_cache: Literal["F32", "F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"] = "F16"
    """The type of the KV cache's values; the smaller ones save memory and cost accuracy. Quantized ones need flash attention."""
    flash_attention: Literal["Auto", "Enabled", "Disabled"] = "Auto"
    """Whether flash attention is used; `Auto`: where the device and the model can."""
    gpu_layers: GpuLayers = "All"
    """How many layers live on the device, or `All`; the rest stays in host memory. Of no effect on host memory."""
    pooling: Literal["", "None", "Mean", "CLS", "Last", "Rank"] = ""
    """Makes it an embedding model (`None`, `Mean`, `CLS`, `Last`) or a rerank model (`Rank`). Default: what the file says."""
    adapters: Annotated[list[Adapter], Field(max_length=16), Unique(("name",))] = Field(default_factory=list)
    """LoRA adapters that are loaded with the model; each is asked for as `MODEL:NAME`."""
    presets: Annotated[list[Preset], Field(max_length=32), Unique(("name",))] = Field(default_factory=list)
    """Names over the one loaded copy, each asked for as `MODEL:NAME`: with its own sampling, system prompt and thinking effort."""
    chat_template: Annotated[str, Field(max_length=65536)] = ""
    """A Jinja chat template instead of the file's own. Default: the file's."""
