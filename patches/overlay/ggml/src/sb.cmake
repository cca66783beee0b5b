# Sources of SpikingBrain's operators, entered by ggml/src/CMakeLists.txt once ggml-base exists.

target_sources(ggml-base PRIVATE
    ../include/ggml-sb.h
    sb-attn.cpp
    sb-gla.cpp
    sb-sparse.cpp
    sb-sparse.h
    sb-spike.cpp
    sb-spike.h
)

set(SB_CPU_SOURCES
    ggml-cpu/sb-attn.cpp
    ggml-cpu/sb-attn.h
    ggml-cpu/sb-compiler.h
    ggml-cpu/sb-cpu.cpp
    ggml-cpu/sb-cpu.h
    ggml-cpu/sb-gla-args.h
    ggml-cpu/sb-gla-chunk.h
    ggml-cpu/sb-gla.cpp
    ggml-cpu/sb-gla.h
    ggml-cpu/sb-sparse-cpu.h
    ggml-cpu/sb-sparse-mul-mat.cpp
    ggml-cpu/sb-spike-code.cpp
    ggml-cpu/sb-spike-counters.cpp
    ggml-cpu/sb-spike-counters.h
    ggml-cpu/sb-spike-cpu.h
    ggml-cpu/sb-spike-mul-mat.cpp
    ggml-cpu/sb-spike-simd.h
    ggml-cpu/sb-vec.h
)
