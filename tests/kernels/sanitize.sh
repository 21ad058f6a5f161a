#!/usr/bin/env bash
# The kernels' own tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; needs g++ with their libraries.
#
#     tests/kernels/sanitize.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export JAX_PLATFORMS=cpu PYTHONPATH=$PWD

run() { # $1: name, $2: flags, $3: libraries to load first
    echo "== $1"
    CXX=g++ "$python" - "$scratch/$1" "$2" <<'PY'
import sys
from pathlib import Path

sys.path.insert(0, "memojax/kernels")
import build

print(build.build(Path(sys.argv[1]), sys.argv[2].split()))
PY
    local preload=""
    for library in $3; do preload+="$(g++ -print-file-name="$library") "; done
    # What Python and JAX do is none of our business: their leaks, and their threads.
    MEMOJAX_KERNELS_LIBRARY="$scratch/$1/_kernels.so" LD_PRELOAD="$preload" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1 \
        setarch -R "$python" -m pytest -q -p no:cacheprovider -n 0 tests/kernels/test_native.py tests/kernels/test_native_elementwise.py tests/kernels/test_direct.py tests/kernels/test_unroll.py tests/kernels/test_windows.py
}

run address "-fsanitize=address,undefined -fno-sanitize-recover=all -g" "libasan.so libubsan.so libstdc++.so.6"
run thread "-fsanitize=thread -g" "libtsan.so libstdc++.so.6"
