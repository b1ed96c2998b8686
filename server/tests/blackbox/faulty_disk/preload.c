/* A library that stands between the program and its disk: loaded by `LD_PRELOAD` before libc, it notes every change of a file
 * below one folder and fails those that a control file names. `faulty_disk.rs` builds and drives it. In C, because what
 * replaces libc's functions is C's business; no Rust of this project is unsafe for a test's sake.
 *
 * Invariant: what no rule names reaches libc as it was called. The library reads the control file at every call, so a test
 * changes the disk's mood at any moment. It calls libc's own functions alone, never those it stands for.
 *
 * A rule is a line: `ID OP PART ACTION FROM COUNT EVERY`. It holds for calls of kind OP (`any` for all but reads) on paths that
 * contain PART (`*` for all; with a `$` at its end, that end so), for the FROM-th such call (from 0) and COUNT after it, every
 * EVERY-th. ACTION is an error number, `short` (half is written) or `wait:MILLISECONDS`. A new ID starts to count anew. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define IDS 256
#define PATH 2048

/* The next definition of a function, as if this library were not there. */
#define REAL(name) ((__typeof__(&name))next_of(#name))

static void *next_of(const char *name) { return dlsym(RTLD_NEXT, name); }

static char root[PATH], control_path[PATH];
static int trace_fd = -1;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static unsigned long long counts[IDS];

static void set_up(void) {
    const char *folder = getenv("FAULTY_DISK_ROOT"), *rules = getenv("FAULTY_DISK_CONTROL"),
               *notes = getenv("FAULTY_DISK_TRACE");
    if (!folder || !rules || !notes) return;
    snprintf(root, sizeof root, "%s", folder);
    snprintf(control_path, sizeof control_path, "%s", rules);
    /* Append: one line is one write, so lines of several threads never mix. */
    trace_fd = REAL(open64)(notes, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* Fills `path` with what a descriptor stands for. */
static void fd_path(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH - 1);
    path[n < 0 ? 0 : n] = 0;
}

/* Fills `path` with what a call of the `at` family means. */
static void at_path(int dir, const char *given, char *path) {
    if (!given) given = "";
    if (dir == AT_FDCWD || given[0] == '/') {
        snprintf(path, PATH, "%s", given);
        return;
    }
    char folder[PATH];
    fd_path(dir, folder);
    if (snprintf(path, PATH, "%s/%s", folder, given) >= PATH) path[0] = 0;
}

struct call {
    const char *op, *path;
    long long offset, len;
};

enum verdict { PASS, FAIL, SHORT };

/* Whether a call is on a path below the root. */
static int watched(const char *path) {
    pthread_once(&once, set_up);
    return trace_fd >= 0 && strncmp(path, root, strlen(root)) == 0;
}

static void note(const struct call *call, char phase, long long result) {
    char line[PATH + 256];
    int n = snprintf(line, sizeof line, "%c %s %ld %lld %lld %lld %s\n", phase, call->op,
                     (long)syscall(SYS_gettid), call->offset, call->len, result, call->path);
    REAL(write)(trace_fd, line, (size_t)n);
}

static int grows(const struct call *call) {
    struct stat now;
    long long size = stat(call->path, &now) == 0 ? (long long)now.st_size : 0;
    return call->offset + call->len > size;
}

static int meant(const struct call *call, const char *op) {
    if (strcmp(op, "any") == 0) return strcmp(call->op, "read") != 0;
    if (strcmp(op, "grow") == 0)
        return (strcmp(call->op, "write") == 0 || strcmp(call->op, "allocate") == 0) && grows(call);
    return strcmp(op, call->op) == 0;
}

static int named(const char *path, char *part) {
    size_t n = strlen(part), whole = strlen(path);
    if (strcmp(part, "*") == 0) return 1;
    if (n == 0 || part[n - 1] != '$') return strstr(path, part) != NULL;
    n -= 1;
    return whole >= n && strncmp(path + whole - n, part, n) == 0;
}

/* What the rules say to a call; the error number for a failure. */
static enum verdict judge(const struct call *call, int *error) {
    char rules[4096];
    int fd = REAL(open64)(control_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return PASS;
    ssize_t n = REAL(read)(fd, rules, sizeof rules - 1);
    close(fd);
    rules[n < 0 ? 0 : n] = 0;
    char *lines = rules, *line;
    while ((line = strsep(&lines, "\n"))) {
        char op[32], part[512], action[32];
        unsigned long long id, from, count, every;
        if (sscanf(line, "%llu %31s %511s %31s %llu %llu %llu", &id, op, part, action, &from, &count,
                   &every) != 7)
            continue;
        if (!meant(call, op) || !named(call->path, part)) continue;
        unsigned long long at = __atomic_fetch_add(&counts[id % IDS], 1, __ATOMIC_RELAXED);
        if (at < from || at - from >= count || (at - from) % (every ? every : 1) != 0) continue;
        if (strncmp(action, "wait:", 5) == 0) {
            long ms = strtol(action + 5, NULL, 10);
            struct timespec span = {ms / 1000, ms % 1000 * 1000000};
            nanosleep(&span, NULL);
        } else if (strcmp(action, "short") == 0) {
            return SHORT;
        } else {
            *error = atoi(action);
            return FAIL;
        }
    }
    return PASS;
}

/* Lets a call happen, in full, in part or not at all, and notes it where it changes something. */
#define GATE(op, path, offset, len, whole, part)                                                   \
    do {                                                                                           \
        if (!watched(path)) return whole;                                                          \
        struct call call = {op, path, (long long)(offset), (long long)(len)};                      \
        int noted = strcmp(op, "read") != 0, error = EIO;                                          \
        if (noted) note(&call, 'B', 0);                                                            \
        enum verdict verdict = judge(&call, &error);                                               \
        long long result = verdict == FAIL ? -1 : verdict == SHORT ? (long long)(part) : (long long)(whole); \
        int kept = verdict == FAIL ? error : errno;                                                \
        if (noted) note(&call, 'E', result);                                                       \
        errno = kept;                                                                              \
        return (__typeof__(whole))result;                                                          \
    } while (0)

static size_t half(size_t n) { return n < 2 ? n : n / 2; }

#define ON_FD(op, fd, offset, len, whole, part) \
    char path[PATH];                            \
    fd_path(fd, path);                          \
    GATE(op, path, offset, len, whole, part)

ssize_t write(int fd, const void *buf, size_t n) {
    ON_FD("write", fd, lseek(fd, 0, SEEK_CUR), n, REAL(write)(fd, buf, n), REAL(write)(fd, buf, half(n)));
}

#define PWRITE(name, off)                                                                          \
    ssize_t name(int fd, const void *buf, size_t n, off offset) {                                  \
        ON_FD("write", fd, offset, n, REAL(pwrite64)(fd, buf, n, offset),                          \
              REAL(pwrite64)(fd, buf, half(n), offset));                                           \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* The lengths of a vectored write added up, and its first part that is not empty. */
static size_t gathered(const struct iovec *parts, int count, struct iovec *first) {
    size_t len = 0;
    *first = (struct iovec){NULL, 0};
    for (int i = 0; i < count; i++) {
        if (!first->iov_len) *first = parts[i];
        len += parts[i].iov_len;
    }
    return len;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct iovec first;
    size_t len = gathered(parts, count, &first);
    ON_FD("write", fd, lseek(fd, 0, SEEK_CUR), len, REAL(writev)(fd, parts, count),
          REAL(write)(fd, first.iov_base, half(first.iov_len)));
}

#define PWRITEV(name, off)                                                                         \
    ssize_t name(int fd, const struct iovec *parts, int count, off offset) {                       \
        struct iovec first;                                                                        \
        size_t len = gathered(parts, count, &first);                                               \
        ON_FD("write", fd, offset, len, REAL(name)(fd, parts, count, offset),                      \
              REAL(pwrite64)(fd, first.iov_base, half(first.iov_len), offset));                    \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t n, unsigned flags) {
    ON_FD("write", to, to_at ? *to_at : lseek(to, 0, SEEK_CUR), n,
          REAL(copy_file_range)(from, from_at, to, to_at, n, flags),
          REAL(copy_file_range)(from, from_at, to, to_at, half(n), flags));
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t n);
ssize_t sendfile64(int to, int from, off64_t *at, size_t n) {
    ON_FD("write", to, lseek(to, 0, SEEK_CUR), n, REAL(sendfile64)(to, from, at, n),
          REAL(sendfile64)(to, from, at, half(n)));
}

/* Functions that take a file and are wholly done or not at all. */
#define WHOLE_ON_FD(op, name, params, fd, offset, len, ...) \
    int name params { ON_FD(op, fd, offset, len, REAL(name)(__VA_ARGS__), REAL(name)(__VA_ARGS__)); }
WHOLE_ON_FD("sync", fsync, (int fd), fd, 0, 0, fd)
WHOLE_ON_FD("sync", fdatasync, (int fd), fd, 0, 0, fd)
WHOLE_ON_FD("allocate", ftruncate, (int fd, off_t len), fd, len, 0, fd, len)
WHOLE_ON_FD("allocate", ftruncate64, (int fd, off64_t len), fd, len, 0, fd, len)
WHOLE_ON_FD("allocate", fallocate, (int fd, int mode, off_t at, off_t len), fd, at, len, fd, mode, at, len)
WHOLE_ON_FD("allocate", fallocate64, (int fd, int mode, off64_t at, off64_t len), fd, at, len, fd, mode, at, len)

/* Functions that take paths; the last one named is the one that counts. */
#define ON_PATH(op, name, params, dir, given, ...)                                                 \
    int name params {                                                                              \
        char path[PATH];                                                                           \
        at_path(dir, given, path);                                                                 \
        GATE(op, path, 0, 0, REAL(name)(__VA_ARGS__), REAL(name)(__VA_ARGS__));                    \
    }
ON_PATH("rename", rename, (const char *from, const char *to), AT_FDCWD, to, from, to)
ON_PATH("rename", renameat, (int a, const char *from, int b, const char *to), b, to, a, from, b, to)
ON_PATH("rename", renameat2, (int a, const char *from, int b, const char *to, unsigned flags), b, to, a, from, b, to, flags)
ON_PATH("rename", link, (const char *from, const char *to), AT_FDCWD, to, from, to)
ON_PATH("rename", linkat, (int a, const char *from, int b, const char *to, int flags), b, to, a, from, b, to, flags)
ON_PATH("unlink", unlink, (const char *given), AT_FDCWD, given, given)
ON_PATH("unlink", unlinkat, (int dir, const char *given, int flags), dir, given, dir, given, flags)
ON_PATH("unlink", rmdir, (const char *given), AT_FDCWD, given, given)
ON_PATH("create", mkdir, (const char *given, mode_t mode), AT_FDCWD, given, given, mode)
ON_PATH("create", mkdirat, (int dir, const char *given, mode_t mode), dir, given, dir, given, mode)
ON_PATH("attributes", chmod, (const char *given, mode_t mode), AT_FDCWD, given, given, mode)

/* An opening that makes a file or may write to one. The mode is passed on where there is one. */
#define OPENING(dir, given, flags, call)                                                           \
    mode_t mode = 0;                                                                               \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                       \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }                                                                                              \
    const char *op = (flags) & O_CREAT ? "create" : "openw";                                       \
    if (!((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))) return call;                         \
    char path[PATH];                                                                               \
    at_path(dir, given, path);                                                                     \
    GATE(op, path, 0, 0, call, call)

int open(const char *given, int flags, ...) { OPENING(AT_FDCWD, given, flags, REAL(open)(given, flags, mode)); }
int open64(const char *given, int flags, ...) { OPENING(AT_FDCWD, given, flags, REAL(open64)(given, flags, mode)); }
int openat(int dir, const char *given, int flags, ...) { OPENING(dir, given, flags, REAL(openat)(dir, given, flags, mode)); }
int openat64(int dir, const char *given, int flags, ...) { OPENING(dir, given, flags, REAL(openat64)(dir, given, flags, mode)); }

ssize_t read(int fd, void *buf, size_t n) {
    ON_FD("read", fd, 0, n, REAL(read)(fd, buf, n), REAL(read)(fd, buf, half(n)));
}

#define PREAD(name, off)                                                                           \
    ssize_t name(int fd, void *buf, size_t n, off offset) {                                        \
        ON_FD("read", fd, offset, n, REAL(pread64)(fd, buf, n, offset),                            \
              REAL(pread64)(fd, buf, half(n), offset));                                            \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)
