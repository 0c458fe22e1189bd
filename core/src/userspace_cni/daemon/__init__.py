"""The daemon: the runtime in a long-lived process, called by the shim through a Unix socket."""
