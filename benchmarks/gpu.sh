#!/usr/bin/env bash
# Everything that wants a CUDA device, in eight minutes at most:
#
#     bash benchmarks/gpu.sh [FOLDER]
#
# The results go to FOLDER, by default benchmarks/results: cost_cuda.json, speed_cuda.json, gpu_tests.log, and the adapter
# of a short training in gpu_training. What cost_cuda.json has already is not measured again. A step that fails or takes
# too long does not stop the others; the exit status says whether all went well. Needs the extras `demo`, `train` and
# `test`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch finds no CUDA device here; nothing was run" >&2
    exit 2
fi
python -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__)'
out="${1:-benchmarks/results}"
mkdir -p "$out" && out="$(cd "$out" && pwd)" || exit 2
export out

cost() {
    python -W ignore benchmarks/cost_cuda.py --out "$out/cost_cuda.json" "$@"
}

speed() {
    local folder
    folder="$(mktemp -d)"
    python -m lowpeft reproduce count --speed --size 32x80 --device cuda --out "$folder" &&
        cp "$folder/speed.json" "$out/speed_cuda.json"
}

training() {
    local folder
    folder="$(mktemp -d)"
    rm -rf "$out/gpu_training"
    python -c 'import pathlib, sys
from lowpeft.demo.task import training_scenes
training_scenes(pathlib.Path(sys.argv[1]), 2)' "$folder" &&
        python -m lowpeft train parallax --weights demo --data "$folder/scenes/train" --out "$out/gpu_training" \
            --device "${DEVICE:-cuda}" --steps "${STEPS:-50}" --batch 2 --crop 96 192 --calibration 8 --warmup-steps 10
}

tests() {
    local status
    # shellcheck disable=SC2046 # one file a word
    python -m pytest -m gpu -q -n 6 -p no:cacheprovider $(grep -rl 'mark\.gpu' tests) >"$out/gpu_tests.log" 2>&1
    status=$?
    tail -n 15 "$out/gpu_tests.log"
    return "$status"
}

failed=()
step() { # step SECONDS COMMAND...
    local limit="$1" start=$SECONDS
    shift
    printf '\n+ %s\n' "$*"
    timeout --kill-after=5 "$limit" bash -c '"$@"' step "$@" || failed+=("$* (status $?)")
    printf '= %s: %d s\n' "$*" "$((SECONDS - start))"
}

export -f cost speed training tests
step 40 cost attention
step 115 cost --seconds 85 step
step 55 speed
step 70 training
step 110 tests
step 90 cost --seconds 40 compile

if ((${#failed[@]})); then
    printf '\nfailed: %s' "${failed[@]}" >&2
    echo >&2
    exit 1
fi
printf '\nall steps went well; the results are in %s\n' "$out"
