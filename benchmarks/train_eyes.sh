#!/usr/bin/env bash
# Train eyes for data/eyes: a tower that knows things, then both stages on one GPU, going on where it was stopped.
# Run: benchmarks/train_eyes.sh models/smollm2-135m-instruct out/pictures out/eyes
set -eu
llm=$1 data=$2 out=$3
python=${PYTHON:-python3}
[ -d "$out/untrained" ] || "$python" benchmarks/learn_things.py --llm "$llm" --data "$data" --out "$out"
"$python" scripts/train.py --recipe llava_align --model "$out/untrained" --data "$data" --out "$out/align" --resume
"$python" scripts/make_llava.py --llm "$llm" --vision "$out/tower" --adapter "$out/align" --out "$out/aligned"
"$python" scripts/train.py --recipe llava_instruct --model "$out/aligned" --data "$data" --out "$out/instruct" --resume
"$python" benchmarks/ship_eyes.py --adapter "$out/instruct" --llava "$out/aligned" --data "$data" --out "$out/shipped"
