"""A watched folder over the registry: edits, additions, removals, and files that are wrong for a while."""

from corral.local.folder import Folder
from corral.local.manifests import Key
from corral.local.registry import Registry


def manifest(name: str, slots: int = 4) -> str:
    return (
        f"apiVersion: corral.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: {name}}}\n"
        f"spec: {{model: {{source: 'file:///m/{name}.gguf'}}, engine: {{slots: {slots}}}}}\n"
    )


class Desk:
    def __init__(self, path):
        self.path = path
        self.said = []
        self.seen = []
        self.registry = Registry(lambda: 1_700_000_000.0)
        self.registry.subscribe(lambda key, obj: self.seen.append((str(key), obj["metadata"]["generation"] if obj else None)))
        self.refused = []
        self.folder = Folder(
            [path], self.registry, lambda level, text: self.said.append((level, text)), lambda key, why: self.refused.append((key.name, why))
        )

    def write(self, name, text):
        (self.path / name).write_text(text)

    def scan(self):
        self.seen.clear()
        self.folder.scan()
        return self.seen

    def get(self, name):
        return self.registry.get(Key("ModelDeployment", "default", name))


def test_adding_editing_and_removing_a_file(tmp_path):
    desk = Desk(tmp_path)
    desk.write("a.yaml", manifest("a"))
    assert ("ModelDeployment default/a", 1) in desk.scan()
    uid = desk.get("a")["metadata"]["uid"]
    assert desk.scan() == []
    desk.write("a.yaml", manifest("a", slots=2))
    assert desk.scan() == [("ModelDeployment default/a", 2)]
    assert desk.get("a")["metadata"]["uid"] == uid
    (tmp_path / "a.yaml").unlink()
    assert desk.scan() == [("ModelDeployment default/a", None)]


def test_a_bad_edit_disturbs_nothing_and_is_told_once(tmp_path):
    desk = Desk(tmp_path)
    desk.write("a.yaml", manifest("a"))
    desk.write("b.yaml", manifest("b"))
    desk.scan()
    desk.write("a.yaml", manifest("a", slots=0) + "---\n" + manifest("c"))
    desk.write("b.yaml", manifest("b", slots=8))
    assert desk.scan() == [("ModelDeployment default/b", 2)]
    desk.scan()
    ((level, text),) = desk.said
    assert level == "error"
    assert "a.yaml:4: ModelDeployment a: spec.engine.slots: Invalid value: 0" in text
    assert desk.get("a")["spec"]["engine"] == {"slots": 4}
    ((name, why),) = desk.refused
    assert name == "a"
    assert "Invalid value: 0" in why
    assert why.endswith("; the last good spec stays in force")
    assert text.endswith("what it said before stays in force")
    assert desk.get("a")["spec"]["engine"]["slots"] == 4
    assert len(desk.folder.problems) == 1
    desk.write("a.yaml", manifest("a", slots=1))
    assert desk.scan() == [("ModelDeployment default/a", 2)]
    assert desk.folder.problems == ()
    desk.write("a.yaml", manifest("a", slots=0))
    desk.scan()
    assert len(desk.said) == 2  # it came up anew


def test_a_file_that_no_longer_parses_keeps_every_object_of_it(tmp_path):
    desk = Desk(tmp_path)
    desk.write("ab.yaml", manifest("a") + "---\n" + manifest("b"))
    desk.scan()
    desk.write("ab.yaml", manifest("a", slots=2) + "---\n" + "kind: [ModelDeployment\n")
    assert desk.scan() == []
    assert [name for name, _ in desk.refused] == ["a", "b"]
    assert desk.get("a")["spec"]["engine"] == {"slots": 4}
    desk.write("ab.yaml", manifest("a", slots=2) + "---\n" + manifest("b"))
    assert desk.scan() == [("ModelDeployment default/a", 2)]
    desk.write("ab.yaml", "kind: [ModelDeployment\n")
    desk.scan()
    assert len(desk.refused) == 4, "what was right in between is told anew"


def test_one_object_in_two_files_is_told_and_the_first_counts(tmp_path):
    desk = Desk(tmp_path)
    desk.write("a.yaml", manifest("a", slots=1))
    desk.write("b.yaml", manifest("a", slots=2))
    desk.scan()
    assert desk.get("a")["spec"]["engine"]["slots"] == 1
    assert "ModelDeployment default/a is in" in desk.said[0][1]


def test_an_object_that_moves_to_another_file_is_not_removed(tmp_path):
    desk = Desk(tmp_path)
    desk.write("a.yaml", manifest("a"))
    desk.scan()
    (tmp_path / "a.yaml").rename(tmp_path / "z.yaml")
    assert desk.scan() == []


def test_without_a_pool_there_is_the_default_one_until_a_file_brings_another(tmp_path):
    desk = Desk(tmp_path)
    assert ("ModelPool default", 1) in desk.scan()
    desk.write("pool.yaml", "apiVersion: corral.dev/v1alpha1\nkind: ModelPool\nmetadata: {name: mine}\n")
    assert desk.scan() == [("ModelPool default", None), ("ModelPool mine", 1)]


def test_a_status_changes_neither_generation_nor_spec(tmp_path):
    desk = Desk(tmp_path)
    desk.write("a.yaml", manifest("a"))
    desk.scan()
    key, uid = Key("ModelDeployment", "default", "a"), desk.get("a")["metadata"]["uid"]
    version = desk.get("a")["metadata"]["resourceVersion"]
    assert desk.registry.set_status(key, uid, {"replicas": 1})
    assert desk.get("a")["metadata"]["generation"] == 1
    assert desk.get("a")["metadata"]["resourceVersion"] != version
    desk.seen.clear()
    assert desk.registry.set_status(key, uid, {"replicas": 1})
    assert desk.seen == []
    assert not desk.registry.set_status(key, "another", {})
    desk.write("a.yaml", manifest("a", slots=1))
    desk.scan()
    assert desk.get("a")["status"] == {"replicas": 1}
