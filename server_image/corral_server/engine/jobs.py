"""The requests as the engine holds them, parsed from the supervisor's messages."""

import time
from dataclasses import dataclass, field
from typing import Any

from corral_server.engine.adapters import AdapterSet, parse_set
from corral_server.engine.budget import Budget
from corral_server.engine.chain import Chain
from corral_server.engine.drafting import Draft, new_draft
from corral_server.engine.grammar import Grammar
from corral_server.engine.lines import LineLimits
from corral_server.engine.media_marks import MediaPrompt, words
from corral_server.engine.sampling import Sampler, SamplingParams
from corral_server.engine.scoring import PromptScores
from corral_server.engine.text import TextStream
from corral_server.engine.vocabulary import Vocabulary


class RefusedError(Exception):
    """A request that cannot run: an HTTP status, an error code and a sentence."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.details = details or {}

    def event(self, job_id: int) -> dict[str, Any]:
        return {"i": job_id, "err": {"status": self.status, "code": self.code, "message": str(self), "param": self.param, **self.details}}


@dataclass
class Job:
    """One answer being generated. `tokens` is the prompt and what was sampled so far: after a preemption it is evaluated again as a whole."""

    id: int
    tokens: list[int]
    prompt_count: int
    limit: int
    params: SamplingParams
    sampler: Sampler
    text: TextStream
    cache: bool = True
    leader: int | None = None
    """The request with the same prompt that evaluates it first."""
    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    cached: int = -1
    announced: bool = False
    preserved: frozenset[int] = frozenset()
    """Special tokens whose text belongs to the answer: what marks a tool call, or a thought."""
    pauses: list[int] = field(default_factory=list)
    """Lengths at which its prompt is interrupted for a checkpoint."""
    searching: bool = False
    """A pass over the whole grammar is under way beside the inference thread: the next token is not known yet."""
    encoding: bool = False
    """One of its pictures is being encoded beside the inference thread."""
    cancelled: bool = False
    scores: PromptScores | None = None
    """Of the prompt's own tokens, when they are asked for."""
    unsaid: int = 0
    """Tokens since the last event: their text is held back."""
    adapters: AdapterSet = ()
    slot: int | None = None
    """The only slot that it may have, when it named one."""
    placed: int = 0
    """The slot that it has."""
    crowded: bool = False
    """It may write until the context is full: reaching that is not what it asked for."""
    tells_tokens: bool = False
    tells_prompt: bool = False
    tells_progress: bool = False
    lines: LineLimits | None = None
    draft: Draft | None = None
    guessed: list[int] = field(default_factory=list)
    """Tokens in this step's batch that nobody has chosen yet."""

    media: MediaPrompt | None = None
    """Where its prompt shows pictures or audio."""

    @property
    def beside(self) -> bool:
        """Whether it waits for what is done beside the inference thread."""
        return self.searching or self.encoding

    def until(self, at: int) -> int:
        """How far its tokens may be evaluated in one piece from there."""
        end = next((p for p in self.pauses if p > at), len(self.tokens))
        return min(end, self.media.text_until(at, end)) if self.media is not None else end

    def position(self, at: int) -> int:
        """The sequence's position after that many tokens."""
        return self.media.position(at) if self.media is not None else at

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_count

    def usage(self) -> dict[str, Any]:
        now = time.perf_counter()
        first = self.first_token or now
        figures = {
            "prompt": self.prompt_count, "cached": max(self.cached, 0), "completion": self.generated,
            "prompt_ms": (first - self.started) * 1e3, "predicted_ms": (now - first) * 1e3, "queued_ms": (self.started - self.arrived) * 1e3,
        }  # fmt: skip
        if self.draft is not None and self.draft.offered:
            figures |= {"draft": self.draft.offered, "accepted": self.draft.accepted}
        return figures


@dataclass
class EmbedJob:
    id: int
    inputs: list[list[int]]
    normalise: bool = True
    next: int = 0
    done: int = 0
    results: list[bytes] = field(default_factory=list)


def prompt_tokens(raw: Any, vocabulary: Vocabulary, *, add_special: bool, parse_special: bool) -> list[int]:
    """Tokens of a prompt given as text, as token numbers, or as llama.cpp's mixed list of both."""
    if isinstance(raw, str):
        return vocabulary.tokenize(raw, add_special=add_special, parse_special=parse_special)
    tokens: list[int] = []
    for index, part in enumerate(raw):
        if isinstance(part, str):
            tokens += vocabulary.tokenize(part, add_special=add_special and index == 0, parse_special=parse_special)
        elif 0 <= part < vocabulary.size:
            tokens.append(part)
        else:
            raise RefusedError(400, "invalid_value", f"token {part} is not in the vocabulary of {vocabulary.size} tokens", "prompt")
    return tokens


def make_job(
    raw: dict[str, Any], vocabulary: Vocabulary, context_length: int, *, adapters: int = 0, drafts: str = "", slots: int = 1,
    shown: MediaPrompt | None = None,
) -> Job:  # fmt: skip
    """A generation job; RefusedError with the reason when it cannot run. `shown`: its prompt, when it has pictures or audio in it."""
    if shown is not None:
        tokens = list(shown.tokens)
    else:
        tokens = prompt_tokens(raw["prompt"], vocabulary, add_special=raw.get("add_special", True), parse_special=raw.get("parse_special", True))
    if not tokens:
        tokens = [vocabulary.bos if vocabulary.bos >= 0 else max(vocabulary.eos, 0)]
    room = context_length - len(tokens)
    asked = raw.get("max_tokens")
    if room < (0 if asked == 0 else 1):
        raise RefusedError(
            400,
            "context_length_exceeded",
            f"This model's maximum context length is {context_length} tokens, but the prompt has {len(tokens)}; "
            "it exceeds the available context size. Please shorten it.",
            raw.get("prompt_param", "messages"),
            {"n_prompt_tokens": len(tokens), "n_ctx": context_length},
        )
    asked_for = raw.get("sampling") or {}
    params = SamplingParams.of({**asked_for, "logit_bias": _biases(asked_for, vocabulary), "context": context_length})
    slot = raw.get("slot")
    if slot is not None and slot >= slots:
        raise RefusedError(400, "invalid_value", f"id_slot is {slot}; this server has slots 0 to {slots - 1}", "id_slot")
    try:
        chosen = parse_set(raw.get("adapters"), adapters)
    except ValueError as error:
        raise RefusedError(400, "invalid_value", str(error), "lora") from None
    grammar = None
    # A grammar that starts in mid-answer starts at a token of its own: in the middle of one, what follows might be forbidden already.
    triggers = single_tokens(raw.get("triggers"), vocabulary)
    if raw.get("grammar") and (triggers or not raw.get("triggers")):
        try:
            grammar = Grammar(vocabulary, raw["grammar"], triggers=triggers)
        except ValueError as error:
            raise RefusedError(400, "invalid_grammar", str(error), raw.get("grammar_param", "grammar")) from None
    chain = Chain(params, vocabulary) if params.needs_chain else None
    sampler = Sampler(
        params,
        grammar,
        [*vocabulary.suppressed, *(vocabulary.end_tokens() if params.ignore_eos else ())],
        chain,
        _budget(raw.get("thought"), vocabulary),
    )
    sampler.prime(words(tokens))
    return Job(
        id=raw["id"], tokens=tokens, prompt_count=len(tokens), limit=room if asked is None or asked < 0 else min(asked, room),
        params=params, sampler=sampler, text=TextStream(raw.get("stop") or ()), cache=raw.get("cache_prompt", True),
        leader=raw.get("leader"), preserved=frozenset(single_tokens(raw.get("preserved"), vocabulary)),
        adapters=chosen, slot=slot, crowded=asked is None or asked < 0 or asked > room,
        tells_tokens=bool(raw.get("tells_tokens")), tells_prompt=bool(raw.get("tells_prompt")), tells_progress=bool(raw.get("tells_progress")),
        lines=LineLimits(**raw["lines"]) if raw.get("lines") else None,
        # What guesses reads words only.
        draft=new_draft(drafts, raw.get("draft")) if shown is None else None, media=shown,
        scores=PromptScores(max(raw["prompt_probs"], 1)) if raw.get("prompt_probs") is not None else None,
    )  # fmt: skip


def _budget(raw: dict[str, Any] | None, vocabulary: Vocabulary) -> Budget | None:
    """The limit of a thought: how many tokens, and the marks around it."""
    if raw is None:
        return None
    opening, closing, said = (vocabulary.tokenize(raw[k], add_special=False, parse_special=True) for k in ("opening", "closing", "message"))

    def whole(token: int) -> bool:
        try:
            vocabulary.piece(token).decode()
        except UnicodeDecodeError:
            return False
        return True

    return Budget(raw["limit"], opening, closing, [*said, *closing], whole, thinking=raw["open"])


def _biases(sampling: dict[str, Any], vocabulary: Vocabulary) -> dict[int, float | None]:
    """Biases by token; a text stands for each of its tokens."""
    found: dict[int, float | None] = {}
    for key, bias in (sampling.get("logit_bias") or {}).items():
        numbers = [int(key)] if key.isascii() and key.isdigit() else vocabulary.tokenize(key, add_special=False, parse_special=False)
        found.update((n, bias) for n in numbers if n < vocabulary.size)
    return found


def single_tokens(texts: list[str] | None, vocabulary: Vocabulary) -> list[int]:
    """Those of the texts that are one token, as that token."""
    found = [vocabulary.tokenize(text, add_special=False, parse_special=True) for text in texts or ()]
    return [tokens[0] for tokens in found if len(tokens) == 1]


def _pair(item: dict[str, str], vocabulary: Vocabulary) -> list[int]:
    """A query and a document as one input, as the model was trained: by its own template, else with its marks between and after them."""
    if "prompt" in item:
        return vocabulary.tokenize(item["prompt"], add_special=False, parse_special=True)
    query, document = (vocabulary.tokenize(item[k], add_special=False, parse_special=False) for k in ("query", "document"))
    end = vocabulary.eos if vocabulary.eos >= 0 else vocabulary.sep
    ends = [end] if vocabulary.add_eos and end >= 0 else []
    begins = [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos >= 0 else []
    between = [vocabulary.sep] if vocabulary.add_sep and vocabulary.sep >= 0 else []
    return [*begins, *query, *ends, *between, *document, *ends]


def make_embed_job(raw: dict[str, Any], vocabulary: Vocabulary, limit: int) -> EmbedJob:
    inputs = []
    for index, item in enumerate(raw["inputs"]):
        tokens = _pair(item, vocabulary) if isinstance(item, dict) else prompt_tokens(item, vocabulary, add_special=True, parse_special=True)
        if vocabulary.add_eos and tokens and tokens[-1] != vocabulary.eos and vocabulary.eos >= 0 and isinstance(item, list):
            tokens.append(vocabulary.eos)
        if len(tokens) > limit:
            raise RefusedError(
                400,
                "context_length_exceeded",
                f"This model's maximum context length is {limit} tokens, but input {index} has {len(tokens)}; it is too large to process.",
                "input",
            )
        if not tokens:
            raise RefusedError(400, "invalid_value", f"input {index} is empty", "input")
        inputs.append(tokens)
    return EmbedJob(id=raw["id"], inputs=inputs, normalise=raw.get("normalise", True))
