// Preloaded: the Nth call of a kind on a file in a folder fails. FAIL_FOLDER, FAIL_CALL (write, fsync, rename, ftruncate), FAIL_NTH,
// FAIL_ERRNO. Calls are counted over all processes in the file FAIL_COUNT, one byte each.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(const char * call, const char * path) {
    const char * folder = getenv("FAIL_FOLDER"), * wanted = getenv("FAIL_CALL"), * count = getenv("FAIL_COUNT");
    if (!folder || !wanted || !count || strcmp(call, wanted) != 0 || strncmp(path, folder, strlen(folder)) != 0) {
        return 0;
    }
    int fd = open(count, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0) {
        return 0;
    }
    syscall(SYS_write, fd, "x", 1);
    struct stat st;
    fstat(fd, &st);
    close(fd);
    if (st.st_size != atoi(getenv("FAIL_NTH"))) {
        return 0;
    }
    errno = atoi(getenv("FAIL_ERRNO"));
    return 1;
}

static int fails_fd(const char * call, int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof(path) - 1);
    if (size < 0) {
        return 0;
    }
    path[size] = 0;
    return fails(call, path);
}

#define NEXT(name, type) ((type) dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void * data, size_t size) {
    return fails_fd("write", fd) ? -1 : NEXT("write", ssize_t (*)(int, const void *, size_t))(fd, data, size);
}
ssize_t writev(int fd, const struct iovec * parts, int count) {
    return fails_fd("write", fd) ? -1 : NEXT("writev", ssize_t (*)(int, const struct iovec *, int))(fd, parts, count);
}
ssize_t copy_file_range(int in, off64_t * from, int out, off64_t * to, size_t size, unsigned flags) {
    typedef ssize_t (*function)(int, off64_t *, int, off64_t *, size_t, unsigned);
    return fails_fd("write", out) ? -1 : NEXT("copy_file_range", function)(in, from, out, to, size, flags);
}
int fsync(int fd) {
    return fails_fd("fsync", fd) ? -1 : NEXT("fsync", int (*)(int))(fd);
}
int fdatasync(int fd) {
    return fails_fd("fsync", fd) ? -1 : NEXT("fdatasync", int (*)(int))(fd);
}
int rename(const char * from, const char * to) {
    return fails("rename", to) ? -1 : NEXT("rename", int (*)(const char *, const char *))(from, to);
}
void * mmap(void * at, size_t size, int protection, int flags, int fd, off_t offset) {
    typedef void * (*function)(void *, size_t, int, int, int, off_t);
    return fd >= 0 && fails_fd("mmap", fd) ? (void *) -1 : NEXT("mmap", function)(at, size, protection, flags, fd, offset);
}
ssize_t read(int fd, void * data, size_t size) {
    return fails_fd("read", fd) ? -1 : NEXT("read", ssize_t (*)(int, void *, size_t))(fd, data, size);
}
