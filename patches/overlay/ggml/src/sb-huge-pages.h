#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Ask for huge pages in a large buffer: weights and caches are read from end to end for every token, and fewer, larger pages
// take less time to look up. A kernel without them refuses, which does no harm.
static inline void sb_use_huge_pages(void * data, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const size_t    page  = 4096;
    const size_t    large = (size_t) 4 << 20;
    const uintptr_t first = ((uintptr_t) data + page - 1)/page*page;
    const uintptr_t last  = ((uintptr_t) data + size)/page*page;
    if (data != NULL && size >= large) {
        madvise((void *) first, last - first, MADV_HUGEPAGE);
    }
#else
    (void) data;
    (void) size;
#endif
}
