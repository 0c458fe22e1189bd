#!/bin/sh
# Runs VPP, and beside it the agent, which gets the arguments. The container ends with VPP.
set -eu
mkdir -p /run/vpp
userspace-cni-agent --watch --ready-file /run/userspace-cni-agent.ready "$@" &
exec "${VPP:-vpp}" -c /etc/vpp/startup.conf
