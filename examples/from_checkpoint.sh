#!/bin/sh
# From a checkpoint to numbers: a tiny random one here, a real one in the same way.
set -e
sb-edge init --preset tiny -o tiny
sb-edge convert tiny --outtype f32 -o tiny-F32.gguf
sb-edge inspect tiny-F32.gguf -c 2048
sb-edge parity tiny-F32.gguf tiny -ctk f32 -ctv f32
