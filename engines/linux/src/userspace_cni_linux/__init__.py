"""Linux kernel engine: veth, tap and macvlan; bridged and routed ports."""
