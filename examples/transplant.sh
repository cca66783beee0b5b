#!/bin/sh
# Any Llama- or Qwen2-shaped model gets SpikingBrain's layers; here the built-in base, with two GLA layers.
set -e
sb-edge transplant default-base -o student --gla-layers 8,12 --dtype f16
sb-edge convert student --outtype f16 -o student-F16.gguf
sb-edge quantize student-F16.gguf student-Q4_0.gguf Q4_0
sb-edge generate student-Q4_0.gguf --prompt "The lighthouse" --n-predict 16 --temp 0
