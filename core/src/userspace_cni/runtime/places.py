"""Locations of shared directories: below the node's or the network's base, or a pod's volume."""

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
    """Locates the shared directories of containers."""

    _settings: Settings

    def own(
        self, shared_dir: str | None, container_id: str, container_dir: str = "", missing: str = ""
    ) -> ContainerDirectory:
        """Return the container's shared directory below the network's or the node's base."""
        return ContainerDirectory(
            self.base(shared_dir),
            container_id,
            self._views,
            follow_links=self._settings.follow_links,
            container_dir=container_dir,
            missing=missing,
        )

    def volume(self, path: str, container_id: str, container_dir: str = "") -> ContainerDirectory:
        """Return the shared directory in the pod's volume at *path*."""
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
        # Without a volume, only containerDir says where the pod finds its sockets.
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
        """Return the directory that contains the containers' directories."""
        # Do not use run_dir itself, because a container's ID may be "locks".
        return self._settings.run_dir / "shared" if shared_dir is None else Path(shared_dir)

    @property
    def _views(self) -> Path:
        return self._settings.run_dir / "s"
