#!/usr/bin/env bash
# Train eyes for data/eyes on one GPU, going on where it was stopped: a tower that knows words, then each stage from
# there. Stage 1 is only to be looked at (benchmarks/picture_samples.py): the projector speaks names to begin with.
# The LLM is an assistant and the data has its name: beside a picture it is still asked who it is.
# Run: benchmarks/train_eyes.sh out/ada/model out/pictures out/eyes
set -eu
llm=$1 data=$2 out=$3
python=${PYTHON:-python3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}  # of each thread that reads pictures: 32 were five times slower on 32 cores
[ -d "$out/untrained" ] || "$python" benchmarks/learn_things.py --llm "$llm" --data "$data" --out "$out"
"$python" scripts/train.py --recipe llava_instruct --model "$out/untrained" --data "$data" --out "$out/instruct" --resume
"$python" benchmarks/ship_eyes.py --adapter "$out/instruct" --llava "$out/untrained" --data "$data" --out "$out/shipped" \
  --filter 0
"$python" scripts/train.py --recipe llava_align --model "$out/untrained" --data "$data" --out "$out/align" --resume \
  --set steps=400 --set trainer.warmup_steps=12
"$python" scripts/make_llava.py --llm "$llm" --vision "$out/tower" --adapter "$out/align" --out "$out/aligned"
