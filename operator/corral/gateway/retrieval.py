"""A request for a response that a pod keeps: to that pod and to no other, whatever its state.

The machine does not hear of it: it waits for nothing, wakes nothing, and is no use of the model. So it has no place to give back either, and where
another request would go back into the hold, this one is told why not.
"""

from __future__ import annotations

from corral.gateway import kept_responses
from corral.gateway.bodies import ClientGone
from corral.gateway.effects import Grant, Reject, Rejection
from corral.gateway.errors import Refused, refuse
from corral.gateway.exchange import Exchange, Outcome
from corral.gateway.naming import Route
from corral.gateway.pods import NoAnswer, UpstreamError


class Retrieval(Exchange):
    """Its grant is its own."""

    async def _read(self) -> None:
        """There is nothing to read: the path says it all."""

    def _arrive(self) -> Outcome:
        gateway, key, request = self.gateway, self.api_key, self.request
        if self.gone:
            raise ClientGone
        gateway.access.need(key, "infer")
        named = kept_responses.target_of(request.path)
        if named is None:
            raise Refused(kept_responses.not_kept())
        digits, target = named
        replica = kept_responses.keeper(digits, gateway.directory.replicas)
        view = gateway.machine.view(replica.model) if replica is not None else None
        if replica is None or view is None or not replica.host:
            if not gateway.directory.synced:
                raise refuse(503, "not_ready", "this gateway has not read the list of models yet", retry_after=1)
            raise Refused(kept_responses.not_kept())
        self.key = view.key
        gateway.access.need_model(key, view, kept_responses.name_for(key, view))
        self.route = Route(view.key, view.key)
        request.target = target + b"?" + request.query if request.query else target
        return Grant(self.id, replica, view)

    def _again(self, *, unreachable: bool) -> Outcome:
        """It was not taken. A pod that is there and takes it for a request to its model knows nothing of kept responses."""
        grant = self.grant
        assert grant is not None  # noqa: S101 - it was to be sent
        known = self.gateway.directory.replicas.get(grant.replica.uid)
        if known is None or known.deleting or not unreachable:
            return Reject(self.id, kept_responses.not_kept())
        return Reject(self.id, Rejection(502, "upstream_failed", f"{self.key}: {known.pod}, which keeps this response, cannot be reached"))

    def _broken(self, error: UpstreamError) -> None:
        gone = self.grant is not None and self.grant.replica.uid not in self.gateway.directory.replicas
        if gone and not (self.gone or self.answered or isinstance(error, NoAnswer)):
            self._fail(Refused(kept_responses.not_kept()))
        else:
            super()._broken(error)
