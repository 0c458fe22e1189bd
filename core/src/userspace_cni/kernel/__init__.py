"""Linux kernel networking for engines: interfaces, addresses, routes, namespaces, rate limits.

This package is public and any engine may use it; core's runtime does not import it. The requests
that every ADD and DEL makes are encoded here (:mod:`.netlink`). Rarer requests go through pyroute2,
which is imported only when one of them is made. See docs/adr/0001-two-ways-to-speak-netlink.md for
the rule and its reasons.
"""
