"""Where responses are kept: bounded, the least recently used first to go, and never a reason for a failure."""

import os
from pathlib import Path

import pytest

from corral_server.kept_responses import KeptResponses, item_id, response_of, tag_of
from corral_server.states_folder import StatesFolder

POD = "11111111-2222-3333-4444-555555555555"


def kept(folder: Path, limit: int = 1 << 20) -> KeptResponses:
    return KeptResponses(folder / "responses", POD, limit)


def test_a_record_comes_back_until_it_is_removed(tmp_path: Path) -> None:
    here = kept(tmp_path)
    name = here.new_id()
    assert here.get(name) is None
    assert here.put(name, {"a": ["ü", 1]})
    assert here.get(name) == {"a": ["ü", 1]}
    assert here.remove(name)
    assert not here.remove(name)
    assert here.get(name) is None
    assert list((tmp_path / "responses").iterdir()) == []


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    here = kept(tmp_path, limit=3_000)
    names = [here.new_id() for _ in range(5)]
    for name in names[:2]:
        here.put(name, {"text": "x" * 900})
    assert here.get(names[0])
    for name in names[2:4]:
        here.put(name, {"text": "x" * 900})
    assert [here.get(name) is not None for name in names] == [True, False, True, True, False]
    assert not here.put(names[4], {"text": "x" * 4_000})
    assert here.get(names[0])


def test_a_later_process_of_the_pod_finds_them_and_counts_them(tmp_path: Path) -> None:
    before = kept(tmp_path)
    names = [before.new_id() for _ in range(3)]
    for age, name in enumerate(names):
        before.put(name, {"text": "x" * 900})
        os.utime(tmp_path / "responses" / f"{name}.json", (1_000 + age, 1_000 + age))
    (tmp_path / "responses" / "tmp_half_written").write_text("{")
    after = kept(tmp_path, limit=3_000)
    assert after.get(names[1]) == {"text": "x" * 900}
    after.put(after.new_id(), {"text": "x" * 900})
    assert [after.get(name) is not None for name in names] == [False, True, True]


def test_what_cannot_be_written_is_not_kept_and_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("a file where the folder should be")
    here = kept(tmp_path)
    assert not here.put(here.new_id(), {})
    (tmp_path / "responses").unlink()
    name = here.new_id()
    assert here.put(name, {"a": 1})
    (tmp_path / "responses" / f"{name}.json").write_text("{")
    assert here.get(name) is None
    assert not here.remove(name)


@pytest.mark.parametrize("name", ["../../etc/passwd", "resp_", "", "resp_" + "0" * 40, "resp_" + "A" * 40, "a\0b"])
def test_only_what_was_put_is_looked_for(tmp_path: Path, name: str) -> None:
    here = kept(tmp_path)
    here.put(here.new_id(), {})
    assert here.get(name) is None
    assert not here.remove(name)


def test_ids_lead_to_their_pod_and_items_to_their_response(tmp_path: Path) -> None:
    name = kept(tmp_path).new_id()
    assert name.startswith(f"resp_{tag_of(POD)}")
    assert len(name) == 45
    assert name != kept(tmp_path).new_id()
    for kind in ("msg", "rs", "fc", "ctc", "ctco"):
        assert response_of(item_id(kind, name, 3)) == name
    assert response_of("msg_1") is None
    assert response_of(name) is None


def test_a_new_start_keeps_responses_and_an_orderly_end_nothing(tmp_path: Path) -> None:
    first = StatesFolder(tmp_path, POD)
    first.claim()
    first.responses.mkdir(parents=True)
    (first.responses / "a.json").write_text("{}")
    (first.path / "1.state").write_text("")
    (first.path / "odd").mkdir()
    again = StatesFolder(tmp_path, POD)
    again.claim()
    assert [path.name for path in again.path.iterdir()] == ["responses"]
    assert (again.responses / "a.json").exists()
    first.release()
    assert not first.path.exists()
