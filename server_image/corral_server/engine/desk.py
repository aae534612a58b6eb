"""What reaches the engine and does not need the context: requests made ready, short questions answered.

Long work is done beside the inference thread, so that nobody's tokens wait for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from corral_server.channel import Message
from corral_server.engine.aside import Aside
from corral_server.engine.jobs import RefusedError, prompt_tokens
from corral_server.engine.media_marks import MediaPrompt
from corral_server.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from corral_server.engine.media_projector import Projector

_QUICK = 16_384
"""Characters that are tokenised at once; a longer text is done beside the inference thread."""


class Desk:
    def __init__(self, vocabulary: Vocabulary, aside: Aside, say: Callable[[Message], None], projector: "Projector | None" = None) -> None:
        self._vocabulary = vocabulary
        self._aside = aside
        self._say = say
        self._projector = projector
        self._preparing: dict[int, bool] = {}

    def prepares(self, number: int) -> bool:
        """Whether a request is still being made ready."""
        return number in self._preparing

    def cancel(self, number: int) -> None:
        if number in self._preparing:
            self._preparing[number] = True

    def prepare(self, message: Message, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Make something of a request: here when it is short, beside this thread when it may take long."""
        number = message["id"]

        def finish(outcome: Callable[[], Any]) -> None:
            cancelled = self._preparing.pop(number, False)
            try:
                made = outcome()
            except RefusedError as error:
                self._say(error.event(number))
                return
            if not cancelled:
                then(made)

        if _is_quick(message):
            finish(work)
        else:
            self._preparing[number] = False
            self._aside.run(work, lambda future: finish(future.result))

    def shown(self, message: Message) -> MediaPrompt | None:
        """The prompt of a request that brings pictures or audio."""
        if not message.get("media"):
            return None
        param = message.get("prompt_param", "messages")
        if self._projector is None:
            raise RefusedError(400, "unsupported_content", "this model takes text only", param)
        text, specials = str(message.get("prompt", message.get("content"))), message.get("add_special", True)
        return self._projector.prompt(text, message["media"], add_special=specials, parse_special=message.get("parse_special", True), param=param)

    def tokenize(self, message: Message) -> None:
        self.prepare(message, lambda: self._tokens(message), self._say)

    def detokenize(self, message: Message) -> None:
        pieces = b"".join(self._vocabulary.piece(t, special=True) for t in message["tokens"])
        self._say({"i": message["id"], "f": "stop", "text": pieces.decode("utf-8", "replace")})

    def _tokens(self, message: Message) -> Message:
        shown = self.shown(message)
        if shown is not None:
            return {"i": message["id"], "f": "stop", "tokens": [max(t, -1) for t in shown.tokens]}
        tokens = prompt_tokens(
            message["content"], self._vocabulary, add_special=message.get("add_special", False), parse_special=message.get("parse_special", True)
        )
        event: Message = {"i": message["id"], "f": "stop", "tokens": tokens}
        if message.get("with_pieces"):
            event["pieces"] = [list(self._vocabulary.piece(t, special=True)) for t in tokens]
        return event


def _is_quick(message: Message) -> bool:
    """Whether a request can be made ready in far less time than a step takes."""
    if message.get("media") or message.get("grammar") or (message.get("sampling") or {}).get("dry_multiplier"):
        # What breaks a repetition is looked for in the whole vocabulary.
        return False
    content = message.get("prompt", message.get("content", message.get("inputs")))
    if isinstance(content, str):
        return len(content) < _QUICK
    return sum(len(str(part)) if isinstance(part, (str, dict)) else 4 for part in content or ()) < _QUICK
