"""The daemon: the runtime in one long-lived process, called by the shim over a unix socket."""
