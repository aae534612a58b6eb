"""Every file that a specification names, fetched one after another: the model, then the projector, the draft and the adapters that go with it."""

from collections.abc import Callable
from dataclasses import dataclass

from corral_server.download.runner import ModelFile, download
from corral_server.settings import Settings
from corral_server.spec import ServerSpec

_MODEL_SHARE = 0.9


@dataclass(frozen=True)
class Files:
    model: ModelFile
    projector: ModelFile | None
    draft: ModelFile | None
    adapters: list[ModelFile]

    @property
    def all(self) -> list[ModelFile]:
        return [self.model, *(file for file in (self.projector, self.draft) if file is not None), *self.adapters]


async def download_needed(spec: ServerSpec, settings: Settings, progress: Callable[[float], None]) -> Files:
    """The files, or Failure. What goes with the model is small: all together it is the last tenth of the progress."""
    beside = spec.beside
    first = _MODEL_SHARE if beside else 1.0
    model = await download(spec.source, spec.sha256, spec.cache_key, settings, lambda value: progress(first * value))
    found = []
    for index, source in enumerate(beside):

        def part(value: float, index: int = index) -> None:
            progress(first + (1 - first) * (index + value) / len(beside))

        found.append(await download(source, "", spec.cache_key, settings, part))
    projector = found.pop(0) if spec.projector else None
    draft = found.pop(0) if spec.engine.draft_source else None
    return Files(model, projector, draft, found)
