"""The shared directories of containers: below the node's own base or the network's, or a volume."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from userspace_cni.config.settings import Settings
from userspace_cni.handover import ContainerDirectory
from userspace_cni.store import Record


@frozen
class Places:
    """Knows where the shared directory of a container is."""

    _settings: Settings

    def own(
        self, shared_dir: object, container_id: str, container_dir: str = "", missing: str = ""
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

    def recorded(self, record: Record) -> ContainerDirectory:
        """Return the shared directory that the ADD of *record* used."""
        if record.directory:
            return self.volume(record.directory, record.container_id)
        return self.own(record.config.get("sharedDir"), record.container_id)

    def at(self, path: str) -> ContainerDirectory:
        """Return the shared directory at *path*, which an engine has read from its switch."""
        base, _, container_id = path.rpartition("/")
        return self.own(base, container_id)

    def base(self, shared_dir: object) -> Path:
        """Return the directory that has the directories of the containers in it."""
        # Not run_dir itself: a container may be called "locks".
        own = self._settings.run_dir / "shared"
        return Path(shared_dir) if isinstance(shared_dir, str) else own

    @property
    def _views(self) -> Path:
        return self._settings.run_dir / "s"
