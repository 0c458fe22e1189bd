"""The kit for authors of engines: the whole contract as tests.

A package of an engine subclasses :class:`Switch`, which says how to start a private instance of the
switch and what a valid configuration is, and :class:`EngineContract`, which brings the tests::

    class ExampleSwitch(Switch):
        ...

    class TestNote(EngineContract):
        network = {"host": {"engine": "example", "iftype": "note"}}

        @pytest.fixture
        def switch(self, tmp_path):
            with ExampleSwitch(tmp_path) as switch:
                yield switch

It needs pytest: ``pip install 'userspace-cni[testing]'``. Each test is explained in
docs/engine-contract.md.
"""

import pytest

# Before the modules are imported, so that their assertions tell what they have compared.
pytest.register_assert_rewrite("userspace_cni.testing.bench", "userspace_cni.testing.contract")

from userspace_cni.testing.contract import EngineContract  # noqa: E402
from userspace_cni.testing.faults import Fault, failing  # noqa: E402
from userspace_cni.testing.switch import Damage, Switch  # noqa: E402

__all__ = ["Damage", "EngineContract", "Fault", "Switch", "failing"]
