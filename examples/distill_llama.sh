#!/bin/sh
# Llama-3.2-1B becomes a SpikingBrain on one GPU. $1: the folder of its checkpoint (safetensors); $2: a folder of text.
# Its scaled rotary frequencies are dropped: they matter beyond 8k tokens, and the window is 4k.
set -e
sb-edge distill "$1" -o llama-student --text "$2" --samples 2000000 --ignore-rope-scaling --bf16 --device cuda \
    --tokens layers=100M --tokens whole=200M --tokens long=50M \
    --batch layers=65536 --batch whole=65536 --batch long=65536 --micro-batch 16384 --outtype bf16 \
    --lr layers=2e-3 --lr whole=3e-4 --lr long=1e-4
sb-edge convert llama-student/student --outtype bf16 -o llama-student-BF16.gguf
sb-edge quantize llama-student-BF16.gguf llama-student-Q4_0.gguf Q4_0
