"""Fixtures: a daemon with the example engine, beside Debian's IPAM plugins."""

from core.conftest import netns
from daemon.conftest import lab

__all__ = ["lab", "netns"]
