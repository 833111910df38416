#!/bin/sh
# macOS opens this file in a terminal when it is double-clicked; see start.sh.
exec "$(dirname -- "$0")/start.sh" "$@"
