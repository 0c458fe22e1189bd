"""A kubeconfig file: address and certificate of the API server, and the user's credentials.

Source: "kubeconfig (v1)" in the reference of Kubernetes, https://kubernetes.io/docs/reference/.
Errors name keys and never values, so that they contain no secrets.
"""

from __future__ import annotations

import os
import ssl
from base64 import b64decode
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.extras import pip_extra

_MAX = 1 << 20  # bytes of a file
_IGNORED = frozenset({"extensions", "disable-compression"})
_CLUSTER = frozenset(
    {
        *("server", "certificate-authority", "certificate-authority-data"),
        *("tls-server-name", "insecure-skip-tls-verify"),
    }
)
_USER = frozenset(
    {
        *("token", "tokenFile", "client-certificate", "client-certificate-data"),
        *("client-key", "client-key-data"),
    }
)


@frozen(kw_only=True)
class Access:
    """An API server, and the credentials for it."""

    host: str
    port: int
    #: The prefix of each request's path.
    prefix: str
    #: The name in the server's certificate.
    server_name: str
    context: ssl.SSLContext = field(repr=False)
    #: The bearer token; empty for a user with a certificate, or without credentials.
    token: str = field(default="", repr=False)


def load(path: str) -> Access:
    """Read the file *path* for its ``current-context``.

    Raises:
        CniError: code 7, naming the file and the key that cannot be used.

    """
    file = _Section(file=path, path="", raw=_parse(path))
    context = _named(file, "contexts", "context", file.text("current-context"))
    cluster = _named(file, "clusters", "cluster", context.text("cluster"))
    user = _named(file, "users", "user", context.text("user"))
    cluster.require_known(_CLUSTER, "proxies are not used")
    user.require_known(_USER, "give the user a token, a tokenFile or a client-certificate")
    try:
        server = urlsplit(cluster.text("server"))
        port = server.port or 443
    except ValueError as error:
        raise cluster.error("server", str(error)) from None
    if server.scheme != "https" or not server.hostname or server.query or "@" in server.netloc:
        raise cluster.error("server", f"expected https://HOST:PORT, got {cluster.text('server')!r}")
    return Access(
        host=server.hostname,
        port=port,
        prefix=server.path.rstrip("/"),
        server_name=cluster.text("tls-server-name", optional=True) or server.hostname,
        context=_tls(cluster, user),
        token=_token(user),
    )


@frozen(kw_only=True)
class _Section:
    """A part of the file that has keys."""

    file: str
    #: The path of this part in the file.
    path: str
    raw: Mapping[str, Any] = field(repr=False)

    def error(self, key: str, problem: str, details: str = "") -> CniError:
        where = f"{self.path}.{key}".lstrip(".")
        return _error(self.file, f"{where}: {problem}", details)

    def require_known(self, known: frozenset[str], instead: str) -> None:
        for key in sorted(map(str, self.raw.keys() - known - _IGNORED)):
            raise self.error(key, "not supported", instead)

    def text(self, key: str, *, optional: bool = False) -> str:
        value = self.raw.get(key)
        if value is None and optional:
            return ""
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise self.error(key, "missing" if value is None else "expected printable text")
        return value

    def flag(self, key: str) -> bool:
        value = self.raw.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, "expected true or false")
        return value

    def place(self, key: str) -> str:
        """Return the path of the file that *key* names, or an empty text."""
        named = self.text(key, optional=True)
        return named and os.path.join(os.path.dirname(self.file), named)

    def content(self, key: str) -> bytes:
        """Return the data of ``KEY-data``, or of the file that *key* names, or nothing."""
        if data := self.text(f"{key}-data", optional=True):
            try:
                return b64decode(data, validate=True)
            except ValueError:
                raise self.error(f"{key}-data", "expected base64") from None
        place = self.place(key)
        return self.read(key, place) if place else b""

    def read(self, key: str, place: str) -> bytes:
        try:
            return _read(place)
        except OSError as error:
            raise self.error(key, f"{place} cannot be read: {error.strerror}") from None


def _parse(path: str) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"kubeconfig {path} cannot be read: PyYAML is not installed",
            f"install it with: {pip_extra('kubernetes')}",
        ) from None
    try:
        parsed = yaml.safe_load(_read(path))
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # The text of the error may contain a line of the file.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise _error(path, f"is not YAML{where}") from None
    if not isinstance(parsed, Mapping):
        raise _error(path, "expected clusters, users and contexts")
    return parsed


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(_MAX + 1)
    if len(content) > _MAX:
        raise OSError(0, f"it is larger than {_MAX} bytes")
    return content


def _named(file: _Section, key: str, kind: str, name: str) -> _Section:
    """Return the *kind* with the *name* from the list *key*."""
    listed = file.raw.get(key)
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, Mapping) and item.get("name") == name:
            raw = item.get(kind)
            path = f"{key}[{name}].{kind}"
            if not isinstance(raw, Mapping):
                raise file.error(path, "missing")
            return _Section(file=file.file, path=path, raw=raw)
    raise file.error(key, f"none is called {name!r}")


def _tls(cluster: _Section, user: _Section) -> ssl.SSLContext:
    authority = cluster.content("certificate-authority")
    insecure = cluster.flag("insecure-skip-tls-verify")
    if authority and insecure:
        raise cluster.error("insecure-skip-tls-verify", "there is a certificate-authority, too")
    try:
        context = ssl.create_default_context(cadata=authority.decode("ascii") or None)
    except (ssl.SSLError, ValueError):
        raise cluster.error("certificate-authority", "expected certificates in PEM form") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # Python 3.13 and later are strict by default, and certificates of older clusters would fail.
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    certificate, key = user.content("client-certificate"), user.content("client-key")
    if bool(certificate) != bool(key):
        missing = "client-key" if certificate else "client-certificate"
        raise user.error(missing, "missing; certificate and key belong together")
    if certificate:
        _load_certificate(context, user, certificate + b"\n" + key)
    return context


def _load_certificate(context: ssl.SSLContext, user: _Section, pem: bytes) -> None:
    """Load the certificate and its key into *context*; :mod:`ssl` only reads them from a file."""
    memory = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(pem)
        # Without a password, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{memory}", password=b"")
    except (ssl.SSLError, ValueError):
        raise user.error(
            "client-certificate", "expected a certificate and its key in PEM form, without password"
        ) from None
    finally:
        os.close(memory)


def _token(user: _Section) -> str:
    """Return the token. A token file takes precedence, because its token is renewed."""
    if place := user.place("tokenFile"):
        key, token = "tokenFile", user.read("tokenFile", place).decode("latin-1").strip()
    else:
        key, token = "token", user.text("token", optional=True)
    if (key == "tokenFile" and not token) or not token.isascii() or not token.isprintable():
        raise user.error(key, "expected a token, which is printable ASCII (it is not shown)")
    return token


def _error(path: str, problem: str, details: str = "") -> CniError:
    return CniError(Code.INVALID_NETWORK_CONFIG, f"kubeconfig {path}: {problem}", details)
