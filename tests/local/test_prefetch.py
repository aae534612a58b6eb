"""`corral prefetch` without a cluster: the file is where `corral up` will look for it."""

import pytest
from tests.server.web_source import Site, serving
from tests.support.gguf_files import sentence_model

from corral.control.translate import read_deployment
from corral.local.prefetch import PrefetchError, prefetch


def model(url: str) -> dict:
    return {"metadata": {"namespace": "default", "name": "m", "uid": "u"}, "spec": {"model": {"source": url}}}


def test_a_file_is_fetched_into_the_cache_that_corral_up_uses(tmp_path, monkeypatch):
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path / "cache"))
    data = sentence_model().read_bytes()
    with serving(Site({"/m.gguf": data})) as site:
        found = model(f"{site.url}/m.gguf")
        answer = prefetch(found, [], tmp_path / "run")
        file = tmp_path / "cache" / "files" / "models" / read_deployment(found).file_key / "m.gguf"
        assert file.read_bytes() == data
        assert (answer["path"], answer["bytes"]) == (str(file), len(data))
        pool = {"metadata": {"name": "default"}, "spec": {"cache": {"size": "1Ki"}}}
        site.files["/other.gguf"] = data
        with pytest.raises(PrefetchError, match=f"NoSpace: .*other.gguf has {len(data)} bytes .* its limit is 1024 bytes"):
            prefetch(model(f"{site.url}/other.gguf"), [pool], tmp_path / "run")
        with pytest.raises(PrefetchError, match="SourceNotFound"):
            prefetch(model(f"{site.url}/none.gguf"), [], tmp_path / "run")
