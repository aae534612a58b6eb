"""Every manifest that ships is one that the API takes."""

from pathlib import Path

import pytest

from corral.local.manifests import read_file

REPOSITORY = Path(__file__).parents[2]
SHIPPED = [*sorted((REPOSITORY / "examples").glob("*.yaml")), *sorted((REPOSITORY / "demo" / "manifests").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_manifest_is_valid(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace('"${', '"file:///').replace('}"}', '"}'))
    content = read_file(copy)
    assert (content.problems, content.notes) == ((), ())
    assert content.manifests
