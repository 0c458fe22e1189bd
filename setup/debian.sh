#!/bin/sh
# Install those of the Debian packages listed in the given files that are not installed yet.
# Usage: setup/debian.sh FILE...
set -eu

missing=""
for package in $(cat "$@" | sed 's/#.*//'); do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null \
        | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "Installing Debian packages:$missing"
if [ "$(id -u)" != 0 ]; then
    echo "This needs root: run make as root, or install them yourself." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Recommended packages would bring a firewall, a desktop bus and daemons that nobody here uses.
# shellcheck disable=SC2086  # a list of words
apt-get install -y -qq --no-install-recommends $missing
