"""The VPP engine of userspace-cni."""
