"""What is estimated once, and what anew."""

from corral.local.estimates import Estimates


class Counted(Estimates):
    """Answers by itself, and keeps what it was asked."""

    def __init__(self, folder):
        super().__init__(folder, folder)
        self.asked = []

    async def _run(self, server_spec, secret_dir):
        self.asked.append((server_spec, secret_dir))
        return {"ok": True, "total": len(self.asked)}


def spec(**engine):
    return {"model": {"source": "hf://o/r/f.gguf", "projector": ""}, "engine": {"slots": 4, **engine}}


async def test_presets_ask_for_no_estimate_of_their_own(tmp_path):
    estimates = Counted(tmp_path)
    first = await estimates.estimate(spec(), None)
    assert await estimates.estimate(spec(presets=[]), None) == first
    assert await estimates.estimate(spec(presets=[{"name": "brief", "systemPrompt": "Be brief."}]), None) == first
    assert await estimates.estimate(spec(slots=5), None) != first
    assert [asked["engine"]["slots"] for asked, _ in estimates.asked] == [4, 5]
