#!/bin/sh
# Runs a DPDK application with the ports that this container was handed over.
# Usage: entrypoint PROGRAM [EAL-ARGUMENT...] -- [ARGUMENT...]
set -eu
arguments=$(userspace-cni-agent --wait eal-args)
program=$1
shift
# shellcheck disable=SC2086  # one argument a line, none with white space
exec "$program" $arguments "$@"
