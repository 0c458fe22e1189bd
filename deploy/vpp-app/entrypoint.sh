#!/bin/sh
# Runs VPP, and the agent in the background with this script's arguments. The container ends with VPP.
set -eu
mkdir -p /run/vpp
userspace-cni-agent --watch --ready-file /run/userspace-cni-agent.ready "$@" &
exec "${VPP:-vpp}" -c /etc/vpp/startup.conf
