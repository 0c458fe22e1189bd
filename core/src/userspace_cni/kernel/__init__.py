"""What engines ask of the Linux kernel: interfaces, addresses, routes, namespaces, rate limits.

Public, for every engine; core's own runtime does not import it. Requests that an ADD or a DEL makes
are encoded here (:mod:`.netlink`); rarer ones go through pyroute2, which is imported when one of
them is made. docs/adr/0001-two-ways-to-speak-netlink.md gives the rule and its reasons.
"""
