#pragma once

// Compiler-specific attributes, empty for other compilers.

// before a loop of constant length, to keep what it indexes in registers
#if defined(__clang__)
#define SB_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define SB_UNROLL _Pragma("GCC unroll 16")
#else
#define SB_UNROLL
#endif

#if defined(__GNUC__)
#define SB_PREFETCH(address) __builtin_prefetch(address)
#define SB_PREFETCH_L2(address) __builtin_prefetch(address, 0, 2)
#define SB_PREFETCH_WRITE(address) __builtin_prefetch(address, 1)
#else
#define SB_PREFETCH(address)
#define SB_PREFETCH_L2(address)
#define SB_PREFETCH_WRITE(address)
#endif
