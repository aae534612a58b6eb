"""What a folder's files say, and how a mistake in one is told."""

from pathlib import Path

import pytest

from corral.local.manifests import Key, files_of, read_file

GOOD = """\
apiVersion: corral.dev/v1alpha1
kind: ModelDeployment
metadata: {name: smollm2}
spec:
  model: {source: "file:///models/a.gguf"}
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    return read_file(path)


def test_documents_of_one_file_are_all_read(tmp_path):
    pool = "apiVersion: corral.dev/v1alpha1\nkind: ModelPool\nmetadata: {name: default}\nspec: {memoryMargin: 64Mi}\n"
    content = read(tmp_path, f"{GOOD}---\n# a comment alone\n---\n{pool}")
    assert [manifest.key for manifest in content.manifests] == [Key("ModelDeployment", "default", "smollm2"), Key("ModelPool", "", "default")]
    assert not content.problems
    assert not content.notes


def test_the_items_of_a_list_are_read(tmp_path):
    content = read(tmp_path, '{"kind": "List", "items": [{"apiVersion": "corral.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": "a"}}]}')
    assert [str(manifest.key) for manifest in content.manifests] == ["ModelPool a"]


def test_another_kind_is_passed_over_with_a_note(tmp_path):
    content = read(tmp_path, f"kind: Service\napiVersion: v1\nmetadata: {{name: x}}\n---\n{GOOD}")
    assert len(content.manifests) == 1
    assert content.notes == (f"{tmp_path}/m.yaml:1: Service is passed over: only ModelDeployment, ModelPool and Secret mean anything on one machine",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + "  engine: {slots: 0}\n", ":6: ModelDeployment smollm2: spec.engine.slots: Invalid value: 0: spec.engine.slots in body should be"),
        (GOOD + "  aliases:\n    - ok\n    - 5\n", ":8: ModelDeployment smollm2: spec.aliases[1]: Invalid value: "),
        (GOOD + "  enigne: {slots: 2}\n", ':6: ModelDeployment smollm2: strict decoding error: unknown field "spec.enigne"'),
        (GOOD.replace("file:///models", "ftp://x"), ":5: ModelDeployment smollm2: spec.model.source: Invalid value:"),
        (GOOD.replace("smollm2", "Smol_LM2"), "ModelDeployment: metadata.name is 'Smol_LM2'; it has to be lower-case"),
        (GOOD.replace("{name: smollm2}", "{}"), "ModelDeployment: metadata.name is missing"),
        (GOOD.replace("v1alpha1", "v9"), "apiVersion is 'corral.dev/v9'; this version of Corral reads corral.dev/v1alpha1"),
        ("kind: [\n", ":2: is not YAML:"),
        ("just text\n", ":1: this document has no kind"),
        ("kind: Secret\napiVersion: v1\nmetadata: {name: s}\ndata: {token: '%%%'}\n", "data.token is not base64"),
    ],
)
def test_a_mistake_is_told_with_file_line_field_value_and_remedy(tmp_path, text, told):
    content = read(tmp_path, f"{GOOD.replace('smollm2', 'fine')}---\n{text}" if "kind: ModelDep" in text else text)
    assert content.manifests == ()
    (problem,) = content.problems
    if "kind: ModelDep" in text and told.startswith(":"):
        line, _, rest = told[1:].partition(":")
        told = f":{int(line) + 6}:{rest}"
    assert problem.startswith(f"{tmp_path}/m.yaml:")
    assert told in problem


def test_a_file_that_is_no_text_is_a_problem(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in read_file(path).problems[0]


def test_a_secret_is_read_from_both_of_its_forms(tmp_path):
    content = read(tmp_path, "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: n}\ndata: {token: aGk=}\nstringData: {username: me}\n")
    (manifest,) = content.manifests
    assert manifest.obj["values"] == {"token": "hi", "username": "me"}


def test_files_are_taken_as_kubectl_takes_them(tmp_path):
    for name in ("b.yml", "a.yaml", "c.json", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.yaml").write_text("")
    assert [path.name for path in files_of([tmp_path, tmp_path / "a.yaml"])] == ["a.yaml", "b.yml", "c.json"]
