"""The shared directories of containers: below the node's own base or the network's, or a volume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from userspace_cni.config.settings import Settings
from userspace_cni.handover import ContainerDirectory
from userspace_cni.store import Record

if TYPE_CHECKING:
    from userspace_cni.runtime.plan import Plan


@frozen
class Places:
    """Knows where the shared directory of a container is."""

    _settings: Settings

    def own(
        self, shared_dir: str | None, container_id: str, container_dir: str = "", missing: str = ""
    ) -> ContainerDirectory:
        """Return the container's shared directory, below the network's own base or the node's."""
        return ContainerDirectory(
            self.base(shared_dir),
            container_id,
            self._views,
            follow_links=self._settings.follow_links,
            container_dir=container_dir,
            missing=missing,
        )

    def volume(self, path: str, container_id: str, container_dir: str = "") -> ContainerDirectory:
        """Return the container's shared directory that is the volume at *path* of its pod."""
        base, name = os.path.split(path)
        return ContainerDirectory(
            Path(base),
            container_id,
            self._views,
            follow_links=self._settings.follow_links,
            volume=name,
            container_dir=container_dir,
        )

    def planned(self, plan: Plan) -> ContainerDirectory:
        """Return the shared directory that *plan*'s ADD uses."""
        conf, container_id = plan.conf, plan.target.container_id
        if plan.volume:
            return self.volume(plan.volume, container_id, conf.container_dir or "")
        # Without its volume, only containerDir can tell the pod where its sockets are.
        missing = conf.shared_volume if plan.annotate and conf.container_dir is None else ""
        return self.own(conf.shared_dir, container_id, conf.container_dir or "", missing)

    def recorded(self, record: Record) -> ContainerDirectory:
        """Return the shared directory that the ADD of *record* used."""
        if record.directory:
            return self.volume(record.directory, record.container_id)
        return self.own(record.conf.shared_dir, record.container_id)

    def at(self, path: str) -> ContainerDirectory:
        """Return the shared directory at *path*, which an engine has read from its switch."""
        base, _, container_id = path.rpartition("/")
        return self.own(base, container_id)

    def base(self, shared_dir: str | None) -> Path:
        """Return the directory that has the directories of the containers in it."""
        # Not run_dir itself: a container may be called "locks".
        return self._settings.run_dir / "shared" if shared_dir is None else Path(shared_dir)

    @property
    def _views(self) -> Path:
        return self._settings.run_dir / "s"
