#!/usr/bin/env bash
# Jaeger v2, the tracing backend of the tests and of `make demo-traces`, built from its Go module: 6 minutes on two cores
# the first time, nothing later. Kept by version outside the checkout, so that a fresh checkout does not build it again,
# and linked to target/backends/jaeger. Prints that path; where it cannot be had, prints nothing and says why.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=v1.76.0 # of the module; ./cmd/jaeger of it is Jaeger v2
link=target/backends/jaeger
if [ "$(id -u)" = 0 ]; then cache=/var/cache/outrigger; else cache=${XDG_CACHE_HOME:-$HOME/.cache}/outrigger; fi
cache=${OUTRIGGER_CACHE:-$cache}
binary=$cache/jaeger-$version

say() { echo "jaeger: $*" >&2; }

# /usr/local/go/bin is where go.dev's archive goes, and not on everybody's path.
PATH=$PATH:/usr/local/go/bin
if [ ! -x "$binary" ]; then
  command -v go >/dev/null || { say "needs Go 1.25 to be built (https://go.dev/dl); tests that need it will be ignored"; exit 0; }
  mkdir -p "$cache" || { say "cannot write to $cache; OUTRIGGER_CACHE names another directory"; exit 0; }
  work=$(mktemp -d "$cache/build-XXXXXX")
  # What is copied from the module cache is read-only.
  trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
  say "building $version, once for this machine (6 minutes on two cores)"
  # The toolchain that is here, whatever the module would like to download.
  export GOTOOLCHAIN=local GOFLAGS='' CGO_ENABLED=0
  build() {
    local source
    source=$(go mod download -json "github.com/jaegertracing/jaeger@$version" | sed -n 's/^.*"Dir": "\(.*\)",*$/\1/p') &&
      [ -n "$source" ] && cp -r "$source" "$work/source" && chmod -R u+w "$work/source" &&
      (cd "$work/source" && go build -trimpath -ldflags '-s -w' -o "$work/jaeger" ./cmd/jaeger)
  }
  build >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; say "could not be built; tests that need it will be ignored"; exit 0; }
  mv "$work/jaeger" "$binary"
fi
mkdir -p "$(dirname "$link")"
ln -sfn "$binary" "$link"
echo "$link"
