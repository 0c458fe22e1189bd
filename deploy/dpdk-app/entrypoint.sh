#!/bin/sh
# Runs a DPDK application with the ports of this container.
# Usage: entrypoint PROGRAM [EAL-ARGUMENT...] -- [ARGUMENT...]
set -eu
arguments=$(userspace-cni-agent --wait eal-args)
program=$1
shift
# shellcheck disable=SC2086  # one argument per line, without white space
exec "$program" $arguments "$@"
