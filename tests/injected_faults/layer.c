/* Makes one operation on files or memory fail: the n-th of those that a control file counts.

   Loaded in front of the C library (LD_PRELOAD) into the processes of a test. All of them share the
   control file (FAULT_CONTROL), which layer.py writes: its layout stands there too. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPENS = 1, WRITES = 2, SYNCS = 4, NAMES = 8, READS = 16, ALLOCATIONS = 32 };

struct control {
    char folder[1024];
    uint32_t kinds;
    int32_t error;
    int64_t first;
    int64_t most;
    int64_t least_bytes;
    int64_t spared;
    _Atomic int64_t counted;
    _Atomic int64_t failed;
};

static struct control *control;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("FAULT_CONTROL");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED)
        control = found;
}

static int is_below(const char *path)
{
    size_t length = strlen(control->folder);
    return length && !strncmp(path, control->folder, length)
           && (path[length] == '/' || path[length] == '\0');
}

static int is_file_below(int file)
{
    char link[40], path[1024];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return is_below(path);
}

static int is_path_below(int folder, const char *path)
{
    char whole[2048];
    if (path[0] == '/')
        return is_below(path);
    if (folder != AT_FDCWD)
        return is_file_below(folder);
    return getcwd(whole, 1024) && is_below(whole);
}

/* Counts an operation, and returns whether it is one that fails. */
static int fails_now(void)
{
    int64_t number = atomic_fetch_add(&control->counted, 1) + 1;
    if (number < control->first || number >= control->first + control->most)
        return 0;
    atomic_fetch_add(&control->failed, 1);
    errno = control->error;
    return 1;
}

static int path_fails(uint32_t kind, int folder, const char *path)
{
    return control && (control->kinds & kind) && is_path_below(folder, path) && fails_now();
}

static int file_fails(uint32_t kind, int file)
{
    return control && (control->kinds & kind) && is_file_below(file) && fails_now();
}

static int memory_fails(size_t size)
{
    return control && (control->kinds & ALLOCATIONS) && size >= (size_t)control->least_bytes
           && getpid() != control->spared && fails_now();
}

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size)
{
    return memory_fails(size) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return memory_fails(count * size) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return memory_fails(size) ? NULL : __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return memory_fails(size) ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **made, size_t alignment, size_t size)
{
    *made = memory_fails(size) ? NULL : __libc_memalign(alignment, size);
    return *made ? 0 : ENOMEM;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list list; \
        va_start(list, last); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

static uint32_t opening(int flags)
{
    return (flags & (O_WRONLY | O_RDWR | O_CREAT)) ? OPENS : READS;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        MODE(flags, flags) \
        return path_fails(opening(flags), AT_FDCWD, path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        REAL(name); \
        MODE(flags, flags) \
        return path_fails(opening(flags), folder, path) ? -1 : real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

FILE *fopen64(const char *path, const char *how)
{
    REAL(fopen64);
    uint32_t kind = how[0] == 'r' && !strchr(how, '+') ? READS : OPENS;
    return path_fails(kind, AT_FDCWD, path) ? NULL : real(path, how);
}

#define ON_FILE(kind, type, name, declared, given) \
    type name declared \
    { \
        REAL(name); \
        return file_fails(kind, file) ? -1 : real given; \
    }
ON_FILE(READS, ssize_t, read, (int file, void *to, size_t size), (file, to, size))
ON_FILE(WRITES, ssize_t, writev, (int file, const struct iovec *parts, int count),
        (file, parts, count))
ON_FILE(WRITES, ssize_t, pwrite64, (int file, const void *from, size_t size, off64_t at),
        (file, from, size, at))
ON_FILE(WRITES, int, ftruncate64, (int file, off64_t size), (file, size))
ON_FILE(SYNCS, int, fsync, (int file), (file))
ON_FILE(SYNCS, int, fdatasync, (int file), (file))
ON_FILE(NAMES, int, fchmod, (int file, mode_t mode), (file, mode))

/* Returns whether this is the first operation that a full disk refuses: it takes half of that one. */
static int fills_up(void)
{
    return control->error == ENOSPC && atomic_load(&control->failed) == 1;
}

ssize_t write(int file, const void *from, size_t size)
{
    REAL(write);
    if (!file_fails(WRITES, file))
        return real(file, from, size);
    return size > 1 && fills_up() ? real(file, from, size / 2) : -1;
}

ssize_t sendfile64(int file, int from, off64_t *at, size_t size)
{
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real)
        real = (ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
    return file_fails(WRITES, file) ? -1 : real(file, from, at, size);
}

#define ON_PATH(name, declared, given) \
    int name declared \
    { \
        REAL(name); \
        return path_fails(NAMES, AT_FDCWD, path) ? -1 : real given; \
    }
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(chmod, (const char *path, mode_t mode), (path, mode))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))

#define BETWEEN(name) \
    int name(const char *from, const char *path) \
    { \
        REAL(name); \
        return path_fails(NAMES, AT_FDCWD, path) ? -1 : real(from, path); \
    }
BETWEEN(rename)
BETWEEN(link)
BETWEEN(symlink)

int unlinkat(int folder, const char *path, int flags)
{
    REAL(unlinkat);
    return path_fails(NAMES, folder, path) ? -1 : real(folder, path, flags);
}
