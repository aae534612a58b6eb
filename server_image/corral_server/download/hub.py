"""`hf://` sources, through huggingface_hub: where a file's bytes are, how many, and what identifies them."""

from dataclasses import dataclass

from corral_server.download.sources import Source
from corral_server.reasons import SOURCE_NOT_FOUND, SOURCE_UNAUTHORIZED, SOURCE_UNREACHABLE, Failure


@dataclass(frozen=True)
class HubFile:
    url: str
    etag: str
    size: int


def locate(source: Source, *, endpoint: str, token: str) -> HubFile:
    """The download address of a hub file; Failure when the hub does not give it out."""
    import huggingface_hub as hub  # noqa: PLC0415  takes half a second, and only hf:// needs it
    from huggingface_hub import errors  # noqa: PLC0415

    what = source.text
    url = hub.hf_hub_url(source.repo, source.path, revision=source.revision, endpoint=endpoint or None)
    try:
        meta = hub.get_hf_file_metadata(url, token=token or False, timeout=30, endpoint=endpoint or None)
    except (errors.GatedRepoError, errors.DisabledRepoError) as error:
        raise Failure(SOURCE_UNAUTHORIZED, f"{what}: {_line(error)}") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 404)
        reason = SOURCE_UNAUTHORIZED if status in (401, 403) and token else SOURCE_NOT_FOUND
        raise Failure(reason, f"{what}: the hub does not have it, or not for this token: {_line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise Failure(SOURCE_UNAUTHORIZED, f"{what}: the hub answered {status}; check the source's secret") from None
        if status == 404:
            raise Failure(SOURCE_NOT_FOUND, f"{what}: the hub answered 404; there is no such file") from None
        raise Failure(SOURCE_UNREACHABLE, f"{what}: the hub answered {status}") from None
    except Exception as error:
        raise Failure(SOURCE_UNREACHABLE, f"{what}: {type(error).__name__}: {_line(error)}") from None
    return HubFile(url=url, etag=meta.etag or "", size=meta.size or 0)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
