#!/bin/sh
# Qwen2.5-1.5B becomes a SpikingBrain on eight GPUs. $1: the folder of its checkpoint (safetensors); $2: a folder of text.
set -e
torchrun --nproc-per-node 8 -m sb_edge distill "$1" -o qwen-student --text "$2" --bf16 --device cuda \
    --tokens layers=200M --tokens whole=400M --tokens long=100M \
    --batch layers=262144 --batch whole=262144 --batch long=262144 --micro-batch 16384 --outtype bf16 \
    --lr layers=2e-3 --lr whole=3e-4 --lr long=1e-4
sb-edge convert qwen-student/student --outtype bf16 -o qwen-student-BF16.gguf
sb-edge quantize qwen-student-BF16.gguf qwen-student-Q4_0.gguf Q4_0
