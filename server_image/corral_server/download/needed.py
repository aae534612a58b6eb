"""Every file that a specification names, fetched one after another: the model, then the draft and the adapters that go with it."""

from collections.abc import Callable
from dataclasses import dataclass

from corral_server.download.runner import ModelFile, download
from corral_server.settings import Settings
from corral_server.spec import ServerSpec

_MODEL_SHARE = 0.9


@dataclass(frozen=True)
class Files:
    model: ModelFile
    draft: ModelFile | None
    adapters: list[ModelFile]

    @property
    def all(self) -> list[ModelFile]:
        return [self.model, *([self.draft] if self.draft else []), *self.adapters]


async def download_needed(spec: ServerSpec, settings: Settings, progress: Callable[[float], None]) -> Files:
    """The files, or Failure. What goes with the model is small: all together it is the last tenth of the progress."""
    draft = [spec.engine.draft_source] if spec.engine.draft_source else []
    beside = [*draft, *(a.source for a in spec.engine.adapters)]
    first = _MODEL_SHARE if beside else 1.0
    model = await download(spec.source, spec.sha256, spec.cache_key, settings, lambda value: progress(first * value))
    found = []
    for index, source in enumerate(beside):

        def part(value: float, index: int = index) -> None:
            progress(first + (1 - first) * (index + value) / len(beside))

        found.append(await download(source, "", spec.cache_key, settings, part))
    return Files(model, found[0] if draft else None, found[len(draft) :])
