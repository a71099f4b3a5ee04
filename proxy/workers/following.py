"""A worker's backends, kept as the parent tells: its settings and its findings are taken over, nobody is asked.

Launched engines are no part of it: a worker follows their launchers itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.app import Gateway
from proxy.launcher_client import Address
from proxy.pool import Backend, Finding
from proxy.settings import BackendSettings, Settings
from proxy.workers.messages import Findings


class Following:
    """Of one worker's gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._registry = gateway.registry

    def adopt(self, settings: Settings, findings: Findings, launchers: Sequence[Address]) -> None:
        """Other settings. What is known of their backends holds from the first request on."""
        planned = self._registry.planned(settings)
        for finding in findings:
            backend = planned.get(finding.name)
            if backend is not None and _same(backend, finding):
                backend.agree(finding)
        self._gateway.reload.swap(settings, planned)
        self.know(findings)
        followed = {one.name for one in self._gateway.launched}
        for address in launchers:
            if address.name not in followed:
                self._gateway.follow(address)

    def know(self, findings: Findings) -> None:
        """All that there is to know; what is not among them was found once and is gone."""
        registry = self._registry
        told = {finding.name: finding for finding in findings}
        for backend in [b for b in registry.backends.values() if b.local]:
            finding = told.get(backend.name)
            if finding is None or not _same(backend, finding):
                registry.remove(backend.name)
        self._add([f for f in findings if f.local and not self._has(f)])
        changed = [registry.backends[f.name].agree(f) for f in findings if self._has(f)]
        if any(changed):
            registry.rebuild()

    def _add(self, new: list[Finding]) -> None:
        """Found on this machine. An engine that has its name here gets another, as it has with the parent."""
        launched = self._gateway.launched if new else ()
        for one in launched:
            one.make_room([finding.name for finding in new])
        for finding in new:
            backend = Backend(finding.name, BackendSettings(base_url=finding.root), local=True)
            backend.agree(finding)
            self._registry.add(backend)
        for one in launched:
            one.refill()

    def _has(self, finding: Finding) -> bool:
        backend = self._registry.backends.get(finding.name)
        return backend is not None and _same(backend, finding)


def _same(backend: Backend, finding: Finding) -> bool:
    return backend.engine is None and backend.local == finding.local and backend.settings.root == finding.root
