"""A model's own settings over its pool's."""

from datetime import timedelta

from corral.api import DEFAULT_POOL, ModelDeployment, ModelPool, effective, server_spec


def model(**spec) -> ModelDeployment:
    return ModelDeployment.parse({"metadata": {"name": "m", "namespace": "team-a"}, "spec": {"model": {"source": "hf://org/repo/file.gguf"}, **spec}})


def pool(**spec) -> ModelPool:
    return ModelPool.parse({"metadata": {"name": "fast"}, "spec": spec})


def test_without_a_pool_the_defaults_hold() -> None:
    found = effective(model())
    assert (found.sleep_after, found.stop_after) == (timedelta(minutes=5), timedelta(minutes=30))
    assert (found.hold.timeout, found.min_residency) == (timedelta(seconds=180), timedelta(seconds=30))
    assert found.refusals == ()
    assert DEFAULT_POOL.metadata.name == "default"


def test_the_pool_sets_what_the_model_leaves_open() -> None:
    found = effective(model(scaling={"stopAfter": "2h"}), pool(idle={"sleepAfter": "1m", "stopAfter": "3m"}))
    assert (found.sleep_after, found.stop_after) == (timedelta(minutes=1), timedelta(hours=2))


def test_a_replica_sleeps_before_it_stops_however_the_two_are_mixed() -> None:
    found = effective(model(scaling={"sleepAfter": "1h"}), pool(idle={"sleepAfter": "1m", "stopAfter": "3m"}))
    assert found.stop_after == found.sleep_after == timedelta(hours=1)


def test_zero_is_a_setting_and_not_an_absence() -> None:
    assert effective(model(scaling={"sleepAfter": "0s"})).sleep_after == timedelta(0)


def test_the_pool_says_why_it_does_not_take_a_model() -> None:
    found = effective(model(priority=5, pinned=True), pool(allowed={"namespaces": ["team-b"], "maxPriority": 4, "pinned": False}))
    assert found.refusals == (
        "namespace team-a may not use pool fast; its allowed.namespaces are: team-b",
        "priority 5 is above 4, the allowed.maxPriority of pool fast",
        "pinned is not allowed in pool fast",
    )


def test_a_margin_by_product() -> None:
    spec = pool(memoryMargins=[{"product": "NVIDIA-L4", "margin": "512Mi"}]).spec
    assert (spec.margin("NVIDIA-L4"), spec.margin("NVIDIA-H100"), spec.margin()) == (512 << 20, 1 << 30, 1 << 30)


def test_the_server_is_told_what_the_api_says() -> None:
    told = server_spec(model(engine={"contextLength": 2048, "promptCache": {"size": 1024}, "sampling": {"temperature": "0"}}), cache_key="team-a")
    assert (told["namespace"], told["name"], told["servedName"], told["cacheKey"]) == ("team-a", "m", "m", "team-a")
    assert told["model"] == {"source": "hf://org/repo/file.gguf", "sha256": "", "projector": ""}
    assert told["engine"]["contextLength"] == 2048
    assert told["engine"]["promptCache"] == {"size": "1Ki", "keepOnSleep": True}
    assert told["engine"]["sampling"] == {"temperature": "0"}
    assert "kvTokens" not in told["engine"]


def test_the_server_is_told_of_presets_as_they_are() -> None:
    preset = {"name": "brief", "adapter": "", "sampling": {"topK": 1}, "reasoningEffort": "None", "systemPrompt": "Be brief."}
    assert server_spec(model(engine={"presets": [preset]}))["engine"]["presets"] == [preset]
    assert "sampling" not in server_spec(model(engine={"presets": [{"name": "plain"}]}))["engine"]["presets"][0]
