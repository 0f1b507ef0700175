#!/usr/bin/env bash
# Train the eyes that data/eyes ships: both stages on one GPU, each going on where it was stopped.
# Run: benchmarks/train_eyes.sh models/smollm2-135m-instruct out/pictures out/eyes
set -eu
llm=$1 data=$2 out=$3
python=${PYTHON:-python3}
stage() { # recipe, the LLaVA it trains, where the adapter goes, the adapter it begins with or "", flags of train.py
  local recipe=$1 llava=$2 adapter=$3 first=$4
  shift 4
  "$python" scripts/make_llava.py --llm "$llm" --vision efficientnet-lite0 --out "$llava" ${first:+--adapter "$first"}
  "$python" scripts/train.py --recipe "$recipe" --model "$llava" --data "$data" --out "$adapter" --resume "$@"
}
stage llava_align "$out/untrained" "$out/align" ""
stage llava_instruct "$out/aligned" "$out/instruct" "$out/align" \
  --set steps=1900 --set drift_weight=0.005 --set vision.dropout=0.1 --set trainer.weight_decay=0.02
"$python" benchmarks/ship_eyes.py --adapter "$out/instruct" --llava "$out/aligned" --data "$data" --out "$out/shipped"
