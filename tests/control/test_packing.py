"""Objects that are kept packed come back as they were."""

import datetime as dt

from corral.control.packing import Packed, Shared, pack, unpack
from corral.control.translate import Deployment, read_deployment


def manifest(name: str, **spec: object) -> dict[str, object]:
    metadata = {"name": name, "namespace": "m", "uid": name, "generation": 1, "resourceVersion": "1"}
    return {
        "apiVersion": "corral.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": metadata,
        "spec": {"model": {"source": "hf://o/r/f.gguf"}, **spec},
    }


def test_an_object_comes_back_whole() -> None:
    obj = {**manifest("a"), "status": {"replicas": 1, "conditions": [{"type": "Ready", "message": "größer"}]}}
    packed = Packed.of(obj)
    assert packed.whole == obj
    assert packed.status == obj["status"]


def test_only_what_the_owner_wrote_makes_it_another() -> None:
    obj = manifest("a")
    packed = Packed.of(obj)
    assert packed.same_but_status(Packed.of({**obj, "metadata": {**obj["metadata"], "resourceVersion": "2"}, "status": {"replicas": 2}}))  # type: ignore[dict-item]
    assert not packed.same_but_status(Packed.of(manifest("a", priority=3)))
    assert not packed.same_but_status(Packed.of({**obj, "metadata": {**obj["metadata"], "generation": 2}}))  # type: ignore[dict-item]


def test_what_json_does_not_have_becomes_text_or_a_number() -> None:
    assert unpack(pack({"on": dt.date(2026, 1, 2), 3: True})) == {"on": "2026-01-02", "3": True}
    assert unpack(pack({"slots": 10**30})) == {"slots": 1e30}


def test_models_that_leave_their_settings_as_they_are_share_them() -> None:
    first, second, other = (read_deployment(manifest(name, **spec)) for name, spec in (("a", {}), ("b", {}), ("c", {"engine": {"slots": 9}})))  # type: ignore[arg-type]
    assert isinstance(first, Deployment)
    assert isinstance(second, Deployment)
    assert isinstance(other, Deployment)
    assert first.parsed.spec.engine is second.parsed.spec.engine
    assert other.parsed.spec.engine.slots == 9
    assert other.parsed.spec.scaling is first.parsed.spec.scaling


def test_an_estimate_holds_whatever_presets_there_are() -> None:
    plain, named, other = (read_deployment(manifest("a", engine=it)) for it in ({}, {"presets": [{"name": "brief"}]}, {"slots": 9}))
    assert isinstance(plain, Deployment)
    assert isinstance(named, Deployment)
    assert isinstance(other, Deployment)
    assert plain.estimate_key == named.estimate_key != other.estimate_key
    assert named.server_spec["engine"]["presets"] != plain.server_spec["engine"]["presets"]


def test_what_nobody_uses_any_more_is_not_kept() -> None:
    shared = Shared()
    first = read_deployment(manifest("a"))
    assert isinstance(first, Deployment)
    whole = shared.parts(first.parsed.spec.model_copy(deep=True))
    known = len(shared)
    del whole
    assert known > 0
    assert len(shared) == 0
