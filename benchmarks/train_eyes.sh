#!/usr/bin/env bash
# Train the eyes that data/eyes ships: both stages on one GPU, each going on where it was stopped.
# Run: benchmarks/train_eyes.sh models/smollm2-135m-instruct out/pictures out/eyes
set -eu
llm=$1 data=$2 out=$3
python=${PYTHON:-python3}
stage() { # recipe, the LLaVA it trains, where the adapter goes, and what make_llava.py is given beside
  local recipe=$1 llava=$2 adapter=$3
  shift 3
  "$python" scripts/make_llava.py --llm "$llm" --vision efficientnet-lite0 --out "$llava" "$@"
  "$python" scripts/train.py --recipe "$recipe" --model "$llava" --data "$data" --out "$adapter" --resume
}
stage llava_align "$out/untrained" "$out/align"
stage llava_instruct "$out/aligned" "$out/instruct" --adapter "$out/align"
"$python" benchmarks/ship_eyes.py --adapter "$out/instruct" --llava "$out/aligned" --data "$data" --out "$out/shipped"
