#!/usr/bin/env bash
# Train and score several variants of identity_lora side by side on one GPU: one line a variant.
# Run: benchmarks/sweep.sh MODEL OUT < variants   (a line: label|name|train.py flags)
set -u
model=$1 out=$2
mkdir -p "$out"
while IFS='|' read -r label name flags; do
  (
    work=$out/work/$label
    python3 scripts/gen_identity_data.py --name "$name" --out "$work/data" --base SmolLM2-135M-Instruct
    # shellcheck disable=SC2086
    python3 scripts/train.py --model "$model" --data "$work/data" --out "$work/adapter" $flags
    python3 scripts/evaluate.py --model "$work/adapter" --base "$model" --name "$name" --out "$work/card"
    cp "$work/card/scorecard.json" "$out/$label.json"
  ) > "$out/$label.log" 2>&1 &
done
wait
python3 - "$out" <<'P'
import json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    card = json.loads(path.read_text())
    cells = [f"{part}.{kind} " + "/".join(f"{card[part][kind][lang]:.3f}" for lang in ("en", "zh"))
             for part in ("recall", "leak") for kind in card[part]]
    kept = card["retention"]
    print(path.stem, "|", " ".join(cells), "| kl", kept["kl"], "top1", kept["top1"], "same", kept["same_answer"])
P
