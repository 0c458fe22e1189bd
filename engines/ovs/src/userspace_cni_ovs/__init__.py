"""The Open vSwitch engine: vhost-user and memif through DPDK, veth and tap."""
