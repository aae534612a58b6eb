"""Whatever happens in whatever order: every request ends once, nobody overtakes, every count returns to zero."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from corral.gateway.effects import Arrival, Grant, LoadError, Reject, ReplicaStatus, Unwatch, Wait, Watch
from corral.gateway.machine import Machine
from corral.gateway.ports import Hold, ModelView, ReplicaView

MODELS = ("models/a", "models/b")
UIDS = ("1", "2", "3")
STATES = ("Sleeping", "Loading", "Loaded", "Draining")


class Gateway(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.machine = Machine(held_bytes_max=40)
        self.now = 0.0
        self.count = 0
        self.place = {}
        self.waiting = {}
        self.flying = {}
        self.over = set()
        self.watched = set()
        self.replicas = {}

    def carry_out(self, effects):
        for effect in effects:
            if isinstance(effect, Grant):
                model = effect.model.key
                assert effect.request not in self.over
                assert effect.replica.uid in self.replicas
                assert not self.replicas[effect.replica.uid].deleting
                others = [self.place[other] for other in self.waiting.get(model, ()) if other != effect.request]
                assert all(self.place[effect.request] < place for place in others), "somebody was overtaken"
                self.waiting.setdefault(model, set()).discard(effect.request)
                assert effect.request not in self.flying
                self.flying[effect.request] = (model, effect.replica.uid)
            elif isinstance(effect, Reject):
                assert effect.request not in self.over
                assert effect.request not in self.flying
                self.over.add(effect.request)
                for waiting in self.waiting.values():
                    waiting.discard(effect.request)
            elif isinstance(effect, Watch):
                assert effect.replica.uid not in self.watched
                self.watched.add(effect.replica.uid)
            elif isinstance(effect, Unwatch):
                self.watched.remove(effect.uid)
            else:
                assert isinstance(effect, Wait)

    @rule(model=st.sampled_from(MODELS), stalled=st.booleans(), ready=st.sampled_from([True, False, None]), timeout=st.integers(1, 20))
    def model_changes(self, model, stalled, ready, timeout):
        view = ModelView(
            *model.split("/"),
            served_names=(model[-1],),
            stalled=stalled,
            ready=ready,
            reason="" if ready else "LoadFailed",
            stalled_reason="DoesNotFit" if stalled else "",
            hold=Hold(timeout=timeout, per_model=5, total=7),
        )
        self.carry_out(self.machine.model_changed(view, self.now))

    @rule(model=st.sampled_from(MODELS))
    def model_goes(self, model):
        self.carry_out(self.machine.model_removed(model, self.now))

    @rule(uid=st.sampled_from(UIDS), model=st.sampled_from(MODELS), state=st.sampled_from(STATES), deleting=st.booleans(), host=st.booleans())
    def replica_changes(self, uid, model, state, deleting, host):
        if uid in self.replicas:
            model = self.replicas[uid].model  # a pod never changes its model
        view = ReplicaView(model, uid, uid, "10.0.0.1" if host else "", deleting=deleting, state=state)
        self.replicas[uid] = view
        self.carry_out(self.machine.replica_changed(view, self.now))

    @rule(uid=st.sampled_from(UIDS))
    def replica_goes(self, uid):
        self.carry_out(self.machine.replica_removed(uid, self.now))
        self.replicas.pop(uid, None)

    @rule(uid=st.sampled_from(UIDS), state=st.sampled_from(STATES), failed=st.booleans(), retry=st.booleans())
    def status_comes(self, uid, state, failed, retry):
        error = LoadError("NotAGGUF", "text", retry, self.now) if failed else None
        self.carry_out(self.machine.replica_status(uid, ReplicaStatus(state, state == "Loaded", 0.5, error), self.now))

    @rule(uid=st.sampled_from(UIDS))
    def status_does_not_come(self, uid):
        self.carry_out(self.machine.replica_unreachable(uid, self.now))

    @rule(
        model=st.sampled_from(MODELS),
        size=st.integers(0, 15),
        affinity=st.integers(0, 3),
        home=st.sampled_from(("", *UIDS)),
        autoload=st.booleans(),
        key=st.sampled_from(["", "k"]),
    )
    def request_arrives(self, model, size, affinity, home, autoload, key):
        self.count += 1
        name = str(self.count)
        self.place[name] = self.count
        arrival = Arrival(name, model, size, affinity, autoload, key=key, key_share=0.5, home=home)
        effects = self.machine.arrive(arrival, self.now)
        own = [effect for effect in effects if getattr(effect, "request", None) == name]
        assert len(own) == 1
        if isinstance(own[0], Wait):
            self.waiting.setdefault(model, set()).add(name)
        self.carry_out(effects)

    @rule(data=st.data(), unreachable=st.booleans())
    def request_comes_back(self, data, unreachable):
        if self.flying:
            name = data.draw(st.sampled_from(sorted(self.flying)))
            model, _ = self.flying.pop(name)
            effects = self.machine.refused(name, self.now, unreachable=unreachable)
            own = [effect for effect in effects if getattr(effect, "request", None) == name]
            assert len(own) == 1
            self.waiting.setdefault(model, set()).add(name)
            self.carry_out(effects)

    @rule(data=st.data(), served=st.booleans())
    def request_ends(self, data, served):
        if self.flying:
            name = data.draw(st.sampled_from(sorted(self.flying)))
            del self.flying[name]
            self.over.add(name)
            self.carry_out(self.machine.ended(name, self.now, served=served))

    @rule(data=st.data())
    def client_leaves(self, data):
        present = sorted({*self.flying, *(name for names in self.waiting.values() for name in names)})
        if present:
            name = data.draw(st.sampled_from(present))
            self.flying.pop(name, None)
            for names in self.waiting.values():
                names.discard(name)
            self.over.add(name)
            self.carry_out(self.machine.left(name, self.now))

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0]))
    def time_passes(self, seconds):
        self.now += seconds
        while (at := self.machine.wake_at(reports=False)) is not None and at <= self.now:
            self.carry_out(self.machine.tick(self.now))
        self.machine.report(self.now)

    @invariant()
    def counts_agree(self):
        waiting = sum(len(names) for names in self.waiting.values())
        assert self.machine.waiting() == waiting <= 7 + len(self.over) + len(self.flying)
        assert self.machine.in_flight() == len(self.flying)
        assert len(self.machine._tickets) == waiting + len(self.flying)
        by_replica = {}
        for _, uid in self.flying.values():
            by_replica[uid] = by_replica.get(uid, 0) + 1
        for uid, one in self.machine._replicas.items():
            assert one.in_flight <= by_replica.get(uid, 0)
        watchable = {uid for uid, view in self.replicas.items() if view.host and not view.deleting and self.waiting.get(view.model)}
        assert self.watched == watchable

    def teardown(self):
        self.carry_out(self.machine.close(self.now))
        for name in list(self.flying):
            self.carry_out(self.machine.ended(name, self.now))
        assert not any(self.waiting.values())
        assert (self.machine.waiting(), self.machine.in_flight(), self.machine.held_bytes) == (0, 0, 0)
        assert not self.machine._tickets
        assert not self.machine._room._by_key
        assert not self.watched
        self.now += 5
        self.machine.report(self.now)
        self.now += 5
        self.machine.report(self.now)
        assert self.machine.wake_at() is None or self.machine._reopenings or self.machine._room._deadlines


TestGateway = Gateway.TestCase
TestGateway.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
