"""The dispatcher: one call in, one answer out."""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

from lab.daemon_lab import environ, frame
from userspace_cni.config.settings import load
from userspace_cni.dispatch import Dispatcher

if TYPE_CHECKING:
    from core.example_lab import ExampleLab
    from userspace_cni.cni.answer import Answer

pytestmark = pytest.mark.one_process("the dispatcher is called here")


def _call(
    dispatcher: Dispatcher, lab: ExampleLab, command: str, conf: dict[str, Any], **more: str
) -> Answer:
    variables = {**lab.plugin.env, **environ(lab, command), **more}
    return dispatcher.call(variables, json.dumps(conf).encode(), StringIO())


def test_an_answer_tells_which_request_it_is_for(lab: ExampleLab) -> None:
    conf = lab.conf()
    with Dispatcher() as dispatcher:
        answer = _call(dispatcher, lab, "ADD", conf)
        assert (answer.status, answer.code) == (0, 0)
        assert answer.request
        assert (answer.request.command, answer.request.target.network) == ("ADD", conf["name"])
        refused = _call(dispatcher, lab, "ADD", conf)
        assert (refused.status, refused.code) == (1, json.loads(refused.out)["code"])
        assert refused.request == answer.request
        done = _call(dispatcher, lab, "DEL", conf)
        assert done._replace(request=None) == (0, "", 0, None)
    assert not lab.records()


def test_what_is_no_request_is_answered_without_one(lab: ExampleLab) -> None:
    with Dispatcher() as dispatcher:
        assert _call(dispatcher, lab, "VERSION", {}).request is None
        assert _call(dispatcher, lab, "ADD", lab.conf(), CNI_IFNAME="").code == 4
        unread = dispatcher.call(environ(lab, "ADD"), b"{", StringIO())
        assert (unread.code, unread.request) == (6, None)
    assert not lab.plugin.state_dir.exists()


def test_a_caller_who_has_gone_gets_nothing_done(lab: ExampleLab) -> None:
    stdin = json.dumps(lab.conf()).encode()
    variables = {**lab.plugin.env, **environ(lab, "ADD")}
    with Dispatcher() as dispatcher:
        assert dispatcher.call(variables, stdin, StringIO(), wanted=lambda: False).code == 11
    assert not lab.records()


def test_a_queued_del_is_carried_out_before_the_add_that_follows_it(lab: ExampleLab) -> None:
    conf = lab.conf()
    queue = load(lab.plugin.env).queue
    with Dispatcher() as dispatcher:
        assert _call(dispatcher, lab, "ADD", conf).status == 0
        queue.mkdir(parents=True)
        (queue / "1.del").write_bytes(frame(lab, "DEL", conf))
        assert _call(dispatcher, lab, "ADD", conf).status == 0
        assert not list(queue.iterdir())
    assert lab.states() == {"c1": "attached"}
