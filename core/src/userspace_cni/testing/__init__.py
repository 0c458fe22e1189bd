"""Test kit for engine authors: the whole engine contract as pytest tests.

An engine's test suite subclasses :class:`Switch`, which starts a private instance of the switch,
and :class:`EngineContract`, which names a valid network configuration and contains the tests::

    class ExampleSwitch(Switch):
        ...

    class TestNote(EngineContract):
        network = {"host": {"engine": "example", "iftype": "note"}}

        @pytest.fixture
        def switch(self, tmp_path):
            with ExampleSwitch(tmp_path) as switch:
                yield switch

The kit needs pytest: ``pip install 'userspace-cni[testing]'``. docs/engine-contract.md explains
each test.
"""

import pytest

# Must precede the imports: pytest rewrites assertions only in modules not imported yet.
pytest.register_assert_rewrite("userspace_cni.testing.bench", "userspace_cni.testing.contract")

from userspace_cni.testing.contract import EngineContract  # noqa: E402
from userspace_cni.testing.faults import Fault, failing  # noqa: E402
from userspace_cni.testing.switch import Damage, Switch  # noqa: E402

__all__ = ["Damage", "EngineContract", "Fault", "Switch", "failing"]
