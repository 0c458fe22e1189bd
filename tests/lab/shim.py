"""The shim with its own settings, and a fake daemon that only speaks the shim's protocol."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from userspace_cni.config.settings import DaemonSettings, Settings
from userspace_cni.install import executables, install, make_queue

SOURCE = Path(__file__).resolve().parents[2] / "shim" / "shim.c"

#: For each build for tests: compiler options, and the command that executes it.
VARIANTS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "sanitized": (("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ()),
    "valgrind": ((), ("valgrind", "--quiet", "--error-exitcode=99")),
}

_REQUEST = struct.Struct(">4sIII")
_ANSWER = struct.Struct(">4sIIII")


@frozen
class Build:
    """A build of the program without settings."""

    program: Path
    runner: Sequence[str] = ()


def compile_variant(name: str, directory: Path, source: Path = SOURCE) -> Build:
    """Compile *source* in *directory* as one of :data:`VARIANTS`."""
    flags, runner = VARIANTS[name]
    program = directory / name
    subprocess.run(
        [
            "cc",
            "-std=c11",
            "-g",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            *flags,
            source,
            "-o",
            program,
        ],
        check=True,
    )
    return Build(program, runner)


@frozen(kw_only=True)
class Shim:
    """An installed shim."""

    build: Build
    bin_dir: Path
    settings: Settings

    @property
    def executable(self) -> Path:
        return self.bin_dir / "userspace"

    @property
    def queue(self) -> Path:
        return self.settings.state_dir / "queue"

    def queued(self) -> list[Path]:
        return sorted(self.queue.iterdir())

    def command(self, redirection: str = "") -> list[str]:
        """Return the command that executes it, with a shell *redirection*."""
        own = [*self.build.runner, str(self.executable)]
        return ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *own] if redirection else own

    def call(
        self,
        command: str,
        stdin: bytes = b'{"cniVersion": "1.0.0"}',
        environ: Mapping[str, str] | None = None,
        redirection: str = "",
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            self.command(redirection),
            input=stdin,
            env={"CNI_COMMAND": command, "PATH": "/usr/bin:/bin", **(environ or {})},
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 99, done.stderr.decode()
        assert b"Sanitizer" not in done.stderr, done.stderr.decode()
        assert b"runtime error" not in done.stderr, done.stderr.decode()
        return done


def make(
    build: Build, directory: Path, *, deadline: float = 30, fallback: str | None = None
) -> Shim:
    """Install *build* below *directory*; *fallback* is a shell script instead of the launcher."""
    bin_dir = directory / "shim"
    bin_dir.mkdir()
    settings = Settings(
        state_dir=directory / "state",
        run_dir=directory,
        daemon=DaemonSettings(deadline=deadline),
    )
    files = executables(
        bin_dir,
        program=build.program.read_bytes(),
        settings=settings,
        fallback=fallback is not None,
    )
    if fallback is not None:
        files["userspace-standalone"] = f"#!/bin/sh\n{fallback}\n".encode()
    make_queue(settings)
    install(bin_dir, files)
    return Shim(build=build, bin_dir=bin_dir, settings=settings)


@frozen
class Request:
    """A request that the shim sent."""

    frame: bytes
    environ: Sequence[bytes]
    stdin: bytes


def parse(frame: bytes) -> Request:
    """Decode a frame, which must be exactly one request."""
    magic, version, of_environ, of_stdin = _REQUEST.unpack_from(frame)
    assert (magic, version) == (b"ucni", 1)
    assert len(frame) == _REQUEST.size + of_environ + of_stdin
    environ = frame[_REQUEST.size : _REQUEST.size + of_environ]
    assert environ.endswith(b"\0")
    return Request(frame, environ[:-1].split(b"\0"), frame[len(frame) - of_stdin :])


def receive(connection: socket.socket) -> Request:
    """Read one request.

    Raises:
        ConnectionResetError: if the caller closed the connection before sending a request.

    """
    header = connection.recv(_REQUEST.size, socket.MSG_WAITALL)
    if not header:
        raise ConnectionResetError
    _, _, of_environ, of_stdin = _REQUEST.unpack(header)
    return parse(header + connection.recv(of_environ + of_stdin, socket.MSG_WAITALL))


def answer(status: int, out: bytes = b"", err: bytes = b"", magic: bytes = b"ucni") -> bytes:
    """Encode an answer."""
    return _ANSWER.pack(magic, 1, status, len(out), len(err)) + out + err


class Daemon:
    """Listens, and passes connections to *serve* one after the other."""

    def __init__(
        self, path: Path, serve: Callable[[socket.socket], None], backlog: int = 64
    ) -> None:
        self._path = path
        self._serve = serve
        self._error: BaseException | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the listener was shut down
                return
            with connection:
                try:
                    self._serve(connection)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                except BaseException as error:  # noqa: BLE001  the test's thread raises it
                    self._error = error


def answering(requests: list[Request], frame: bytes) -> Callable[[socket.socket], None]:
    """Return a function that records each request and answers with *frame*."""

    def serve(connection: socket.socket) -> None:
        requests.append(receive(connection))
        connection.sendall(frame)

    return serve
