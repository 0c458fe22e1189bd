"""The Linux kernel engine: veth, tap and macvlan; bridges and routed ports."""
