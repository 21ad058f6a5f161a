#!/usr/bin/env bash
# Measures memojax on an accelerator of a machine that is lent for minutes and reaches no package registry.
#
#   bash benchmarks/on_device.sh wheels    here, once: downloads into .whl/ what the machine lacks
#   bash benchmarks/on_device.sh           there, in the root of the copied tree: at most 9 minutes
#   bash benchmarks/on_device.sh --dry     anywhere: the same steps on the CPU; other options go on, too
#
# accelerator.json, accelerator.md and log lie in $OUT (without it in accelerator-results/) and are written again
# after each row, so an early end leaves what was measured. git ignores .whl/, so a tool that copies only what
# git tracks must be told to carry it. $PYTHON names another interpreter than python3. $WHEELS and $WHEELS_PYTHON
# (3.12) say which packages to download, and for which interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [ "${1:-}" = wheels ]; then
  platforms=()
  for n in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${n}_x86_64"); done
  # shellcheck disable=SC2086  # several names
  exec "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "${WHEELS_PYTHON:-3.12}" \
    --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    -d .whl ${WHEELS:-lazy-loader jaxonnxruntime==0.3.0}
fi

out=${OUT:-accelerator-results}
mkdir -p "$out"
{
  date
  nvidia-smi 2>&1 | head -15
  site=
  if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --root-user-action ignore --target "$site" .whl/*.whl || site=
  fi
  export PYTHONPATH="$PWD${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
  # Without a compiler the kernels stay away; they serve only plans for the CPU.
  [ "${MEMOJAX_KERNELS:-}" = 0 ] || "$python" -c "import memojax; exit(not memojax.kernels.available())" ||
    timeout 120 "$python" memojax/kernels/build.py || echo "no kernels"
  timeout 480 "$python" benchmarks/accelerator.py --seconds 420 \
    --json "$out/accelerator.json" --markdown "$out/accelerator.md" "$@"
  status=$?
  date
  exit "$status"
} 2>&1 | tee "$out/log"
exit "${PIPESTATUS[0]}"
