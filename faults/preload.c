/* Sees every call by which a process changes files or the network, numbers it, and may kill before it is made.
 *
 * Loaded into every process of a run with LD_PRELOAD. All share one file, named by $FAULTS_CONTROL and mapped by each: the
 * counter, the orders, the table of processes and the recorded lines. `control.py` is the other side of that file.
 *
 * A point is what makes one call out of all: the role of the process (from its argv, or $FAULTS_ROLE where the process was
 * forked and not started), the name of the call and the path with its volatile parts taken out. Not seen are programs that
 * are linked statically or change their user, writes through a shared mapping, and what libc calls within itself, but for
 * stdio's, whose flush and close are points of their own.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include <utime.h>

enum { OFF, RECORD };
enum { CALLER, NEAR_SIDE, FAR_SIDE };
enum { PROCESSES = 8192, TEXT = 1024, TOLD = 3000 };

struct process {
    _Atomic int32_t pid;
    int32_t side;
    uint64_t started;
    char role[48];
};

/* The layout is known to control.py. */
struct control {
    _Atomic uint64_t counter;
    _Atomic uint32_t mode;
    uint32_t how;
    _Atomic uint64_t hits;
    uint64_t occurrence;
    _Atomic int32_t killer;
    _Atomic uint32_t victims;
    _Atomic uint32_t processes;
    uint32_t unused;
    _Atomic uint64_t log_bytes;
    uint64_t log_limit;
    char target[2048];
    char root[TEXT];
    char day[16];
    struct process process[PROCESSES];
    char log[];
};

_Static_assert(sizeof(struct process) == 64 && offsetof(struct control, target) == 64, "control.py knows better");
_Static_assert(offsetof(struct control, process) == 3152, "control.py knows better");

static struct control *control;
static char role[48];
static int side = NEAR_SIDE;
static int is_counted;
static pid_t registered;
static __thread int is_inside;

/* ---- who this process is ---- */

static uint64_t started_at(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return 0;
    ssize_t count = syscall(SYS_read, descriptor, text, sizeof text - 1);
    syscall(SYS_close, descriptor);
    if (count <= 0) return 0;
    text[count] = 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    if (at && strrchr(text, ')')[2] == 'Z') return 0;
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

static void enrol(void) {
    registered = getpid();
    for (uint32_t n = 0; n < control->processes && n < PROCESSES; n++)
        if (control->process[n].pid == registered && control->process[n].started == started_at(registered)) {
            snprintf(control->process[n].role, sizeof role, "%s", role);
            control->process[n].side = side;
            return;
        }
    uint32_t number = atomic_fetch_add(&control->processes, 1);
    if (number >= PROCESSES) return;
    struct process *mine = &control->process[number];
    mine->side = side;
    mine->started = started_at(registered);
    snprintf(mine->role, sizeof mine->role, "%s", role);
    mine->pid = registered;
}

static int has(char *const words[], int count, const char *word) {
    for (int n = 1; n < count; n++)
        if (!strcmp(words[n], word)) return n;
    return 0;
}

static void name_role(char *const words[], int count) {
    const char *program = strrchr(words[0], '/');
    program = program ? program + 1 : words[0];
    int at;
    is_counted = 1;
    if (!strncmp(program, "rsync", 5)) {
        snprintf(role, sizeof role, "rsync %s", has(words, count, "--server") ? "server" : "client");
    } else if (!strcmp(program, "ssh")) {
        snprintf(role, sizeof role, "ssh %s", has(words, count, "-oControlMaster=yes") ? "master" : "client");
    } else if (!strncmp(program, "python", 6)) {
        if (count > 1 && (at = has(words, count, "-m")) && at + 1 < count) {
            const char *module = strrchr(words[at + 1], '.');
            const char *asked = getenv("SSH_ORIGINAL_COMMAND");
            if (module) snprintf(role, sizeof role, "%s", module + 1);
            else if (asked && at + 2 < count && !strcmp(words[at + 2], "receive"))
                snprintf(role, sizeof role, "receive %.*s", (int)strcspn(asked, " "), asked);
            else if (at + 3 < count) snprintf(role, sizeof role, "%s %s", words[at + 2], words[at + 3]);
        } else {
            snprintf(role, sizeof role, "python");
            is_counted = 0;
        }
    } else {
        snprintf(role, sizeof role, "%s", program);
        is_counted = strcmp(program, "env") && strcmp(program, "sort") && strcmp(program, "find");
    }
}

static void read_role(void) {
    char text[8192];
    char *words[256];
    int count = 0, descriptor = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = syscall(SYS_read, descriptor, text, sizeof text - 1);
    syscall(SYS_close, descriptor);
    if (size <= 0) return;
    text[size] = 0;
    for (char *at = text; at < text + size && count < 256; at += strlen(at) + 1) words[count++] = at;
    name_role(words, count);
}

static void after_fork(void) {
    is_inside = 0;
    if (control && role[0]) enrol();
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_CONTROL");
    if (!path || control) return;
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    struct stat status;
    if (fstat(descriptor, &status) == 0) {
        void *mapped = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (mapped != MAP_FAILED) control = mapped;
    }
    syscall(SYS_close, descriptor);
    if (!control) return;
    const char *given = getenv("FAULTS_SIDE");
    side = given && !strcmp(given, "far") ? FAR_SIDE : NEAR_SIDE;
    pthread_atfork(NULL, NULL, after_fork);
    if (getenv("FAULTS_SERVER")) return; /* who forks the processes that count is none of them */
    read_role();
    enrol();
}

/* For a process that was forked and not started: who it is from now on. */
void faults_role(const char *name) {
    if (!control) return;
    snprintf(role, sizeof role, "%s", name);
    is_counted = 1;
    const char *given = getenv("FAULTS_SIDE");
    side = given && !strcmp(given, "far") ? FAR_SIDE : NEAR_SIDE;
    enrol();
}

/* ---- what it is about to do ---- */

struct call {
    uint64_t number;
    const char *name;
    char path[TEXT], other[TEXT];
    uint64_t inode;
    int64_t size;
    int is_point;
};

static void absolute(int folder, const char *path, char *into) {
    ssize_t length = 0;
    if (path[0] != '/') {
        char link[64];
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, into, TEXT - 2);
        if (length < 0) length = 0;
        into[length++] = '/';
    }
    snprintf(into + length, TEXT - (size_t)length, "%s", path);
}

static int run_of(const char *text, int (*is)(int)) {
    int count = 0;
    while (is((unsigned char)text[count])) count++;
    return count;
}

static int is_lower_hex(int c) { return isdigit(c) || (c >= 'a' && c <= 'f'); }

/* The length of a moment as flags and runs write it, 20241101T000000.123456Z; 0 when it is none. */
static int moment(const char *at) {
    if (run_of(at, isdigit) != 8 || at[8] != 'T' || run_of(at + 9, isdigit) != 6 || at[15] != '.') return 0;
    int more = run_of(at + 16, isdigit);
    return at[16 + more] == 'Z' ? 17 + more : 0;
}

static void normal(const char *path, char *into) {
    size_t used = 0, root = strlen(control->root);
    const char *at = path, *name = strrchr(path, '/');
    size_t length = strlen(path);
    int is_temporary = !strncmp(role, "rsync", 5) && name && name[1] == '.' && length > 7 && path[length - 7] == '.';
    if (root && !strncmp(path, control->root, root)) {
        at += root;
        if (!strncmp(at, "machines/", 9)) at += 9;
        else if (!strncmp(at, "t/", 2) && strlen(at + 2) == 8 && !strchr(at + 2, '/')) at = "t/<random>"; /* tempfile tries its folder */
    }
    while (*at && used < TEXT - 16) {
        int skip;
        const char *mark = NULL;
        if ((skip = moment(at))) mark = "<time>";
        else if (control->day[0] && !strncmp(at, control->day, 8) && !isdigit((unsigned char)at[8])) skip = 8, mark = "<day>";
        else if ((skip = run_of(at, is_lower_hex)) >= 16) mark = "<hex>";
        else if (used >= 6 && !strncmp(into + used - 6, "<hex>.", 6) && (skip = run_of(at, isalnum)) == 16)
            mark = "<random>";
        else if (!strncmp(at, "dataflow-notes-", 15)) skip = (int)strlen(at), mark = "<notes>";
        else if (is_temporary && at == path + length - 6) skip = 6, mark = "<6>";
        else skip = 1;
        if (mark) used += (size_t)sprintf(into + used, "%s", mark);
        else into[used++] = *at;
        at += skip;
    }
    into[used] = 0;
}

static int is_elsewhere(const char *path) {
    return !strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm/", 9) ? 1
        : strstr(path, " (deleted)") || !strncmp(path, "/proc/", 6) || !strncmp(path, "/sys/", 5) || !strncmp(path, "/var/run/nscd", 13) || !strncmp(path, "/run/systemd", 12);
}

static void end_side(int which) {
    pid_t self = getpid();
    for (uint32_t n = 0; n < control->processes && n < PROCESSES; n++) {
        struct process *each = &control->process[n];
        pid_t pid = each->pid;
        if (pid == self || pid <= 1 || each->side != which || started_at(pid) != each->started) continue;
        if (kill(pid, SIGKILL) == 0) atomic_fetch_add(&control->victims, 1);
    }
}

static void end_as_ordered(void) {
    control->occurrence = 0;
    control->killer = getpid();
    if (control->how != CALLER) end_side((int)control->how);
    if (control->how == CALLER || (int)control->how == side) {
        atomic_fetch_add(&control->victims, 1);
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static void tell(const struct call *call, int64_t result, const char *text, size_t text_bytes) {
    char line[3 * TEXT + 2 * TOLD + 256], seen[TEXT], other[TEXT];
    normal(call->path, seen);
    if (call->other[0]) normal(call->other, other);
    else other[0] = 0;
    int used = snprintf(line, sizeof line, "%lu\t%lu\t%d\t%s\t%s\t%d\t%s%s%s\t%s\t%s\t%lu\t%ld\t%ld\t", (unsigned long)call->number,
                        (unsigned long)control->counter, getpid(), role, call->name, call->is_point, seen, other[0] ? " > " : "", other,
                        call->path, call->other, (unsigned long)call->inode, (long)call->size, (long)result);
    if (text_bytes > TOLD) text_bytes = TOLD;
    for (size_t n = 0; n < text_bytes && used < (int)sizeof line - 3; n++) {
        char c = text[n];
        line[used++] = c == '\n' || c == '\t' || !c ? ' ' : c;
    }
    line[used++] = '\n';
    uint64_t at = atomic_fetch_add(&control->log_bytes, (uint64_t)used);
    if (at + (uint64_t)used <= control->log_limit) memcpy(control->log + at, line, (size_t)used);
}

/* Number the call, and die here if this is the one; who is left is recorded further. */
static void arrive(struct call *call) {
    call->number = atomic_fetch_add(&control->counter, 1) + 1;
    if (!control->occurrence) return;
    char key[3 * TEXT], seen[TEXT], other[TEXT];
    normal(call->path, seen);
    if (call->other[0]) normal(call->other, other);
    else other[0] = 0;
    snprintf(key, sizeof key, "%s\t%s\t%s%s%s", role, call->name, seen, other[0] ? " > " : "", other);
    if (!strcmp(key, control->target) && atomic_fetch_add(&control->hits, 1) + 1 == control->occurrence) end_as_ordered();
}

static int is_watched(void) { return control && is_counted && !is_inside && control->mode != OFF; }

static int on_path(struct call *call, const char *name, int folder, const char *path, int is_point) {
    if (!is_watched() || !path) return 0;
    int was = errno;
    is_inside = 1;
    call->name = name;
    call->is_point = is_point;
    call->other[0] = 0;
    call->inode = 0;
    call->size = 0;
    absolute(folder, path, call->path);
    int is_ours = !is_elsewhere(call->path);
    struct stat status;
    if (is_ours && fstatat(folder, path, &status, AT_SYMLINK_NOFOLLOW) == 0) {
        call->inode = status.st_ino;
        call->size = status.st_size;
    }
    if (is_ours && is_point) arrive(call);
    else call->number = control->counter;
    is_inside = 0;
    errno = was;
    return is_ours;
}

static int on_paths(struct call *call, const char *name, int folder, const char *path, int other_folder, const char *other) {
    if (!is_watched() || !path || !other) return 0;
    int was = errno;
    is_inside = 1;
    call->name = name;
    call->is_point = 1;
    call->inode = 0;
    call->size = 0;
    absolute(folder, path, call->path);
    absolute(other_folder, other, call->other);
    struct stat status;
    if (fstatat(folder, path, &status, AT_SYMLINK_NOFOLLOW) == 0) {
        call->inode = status.st_ino;
        call->size = status.st_size;
    }
    arrive(call);
    is_inside = 0;
    errno = was;
    return 1;
}

/* Pipes count where they are the link: what rsync, ssh and the receiving end write into them travels. */
static int is_of_link(void) { return side == FAR_SIDE || !strncmp(role, "rsync", 5) || !strncmp(role, "ssh", 3); }

static int on_descriptor(struct call *call, const char *name, int descriptor, int is_point) {
    if (!is_watched()) return 0;
    int was = errno, is_ours = 0;
    is_inside = 1;
    call->name = name;
    call->is_point = is_point;
    call->other[0] = 0;
    struct stat status;
    if (fstat(descriptor, &status) == 0) {
        call->inode = status.st_ino;
        call->size = status.st_size;
        if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)) {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
            ssize_t length = readlink(link, call->path, TEXT - 1);
            call->path[length > 0 ? length : 0] = 0;
            is_ours = !is_elsewhere(call->path);
        } else if (S_ISSOCK(status.st_mode) && is_point) {
            struct sockaddr_storage address;
            socklen_t size = sizeof address;
            address.ss_family = AF_UNSPEC;
            getsockname(descriptor, (struct sockaddr *)&address, &size);
            snprintf(call->path, TEXT, "%s", address.ss_family == AF_UNIX ? "(socket)" : "(network)");
            is_ours = 1;
        } else if (S_ISFIFO(status.st_mode) && is_point && is_of_link()) {
            snprintf(call->path, TEXT, "(pipe)");
            is_ours = 1;
        }
    }
    if (is_ours && is_point) arrive(call);
    else call->number = control->counter;
    is_inside = 0;
    errno = was;
    return is_ours;
}

static void done(struct call *call, int64_t result, const char *text, size_t text_bytes) {
    if (control->mode == OFF) return;
    int was = errno;
    is_inside = 1;
    tell(call, result, text, text_bytes);
    is_inside = 0;
    errno = was;
}

static void done_new(struct call *call, int descriptor) {
    struct stat status;
    if (control->mode != OFF && descriptor >= 0 && fstat(descriptor, &status) == 0) {
        call->inode = status.st_ino;
        call->size = status.st_size;
    }
    done(call, descriptor, NULL, 0);
}

/* ---- the calls ---- */

#define REAL(result_type, name, ...) \
    static result_type (*real)(__VA_ARGS__); \
    if (!real) real = (result_type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define CHANGES(flags) (((flags) & (O_CREAT | O_TRUNC)) || ((flags) & O_ACCMODE) != O_RDONLY)

#define OPEN(name, ...) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        struct call call; \
        if (!on_path(&call, CHANGES(flags) ? "open to write" : "open", AT_FDCWD, path, CHANGES(flags))) return real(path, flags, mode); \
        int result = real(path, flags, mode); \
        done_new(&call, result); \
        return result; \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        struct call call; \
        if (!on_path(&call, CHANGES(flags) ? "open to write" : "open", folder, path, CHANGES(flags))) \
            return real(folder, path, flags, mode); \
        int result = real(folder, path, flags, mode); \
        done_new(&call, result); \
        return result; \
    }
OPENAT(openat)
OPENAT(openat64)

int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int folder, const char *path, int flags) { return openat(folder, path, flags); }
int __openat64_2(int folder, const char *path, int flags) { return openat64(folder, path, flags); }
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* The name is made up inside libc, so the template stands for it. */
#define TEMPORARY(name) \
    int name(char *template) { \
        REAL(int, name, char *); \
        struct call call; \
        if (!on_path(&call, "open to write", AT_FDCWD, template, 1)) return real(template); \
        int result = real(template); \
        if (result >= 0) absolute(AT_FDCWD, template, call.path); \
        done_new(&call, result); \
        return result; \
    }
TEMPORARY(mkstemp)
TEMPORARY(mkstemp64)

#define STREAM(name) \
    int name(FILE *stream) { \
        REAL(int, name, FILE *); \
        struct call call; \
        int descriptor = stream ? fileno(stream) : -1; \
        if (descriptor < 0 || (fcntl(descriptor, F_GETFL) & O_ACCMODE) == O_RDONLY) return real(stream); \
        if (!on_descriptor(&call, #name, descriptor, 1)) return real(stream); \
        int result = real(stream); \
        done(&call, result, NULL, 0); \
        return result; \
    }
STREAM(fflush)
STREAM(fclose)

/* Records, flags, and what the receiver answers. */
static int tells_text(const struct call *call) {
    if (side == FAR_SIDE && !strcmp(call->path, "(pipe)")) return !strncmp(role, "receive", 7);
    return strstr(call->path, ".jsonl") || strstr(call->path, ".flag") || strstr(call->path, "/outbox/");
}

ssize_t write(int descriptor, const void *from, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    struct call call;
    if (!on_descriptor(&call, "write", descriptor, 1)) return real(descriptor, from, size);
    ssize_t result = real(descriptor, from, size);
    done(&call, result, from, tells_text(&call) ? size : 0);
    return result;
}

#define ON_DESCRIPTOR(result_type, name, parameters, arguments, ...) \
    result_type name parameters { \
        REAL(result_type, name, __VA_ARGS__); \
        struct call call; \
        if (!on_descriptor(&call, #name, descriptor, 1)) return real arguments; \
        result_type result = real arguments; \
        done(&call, (int64_t)result, NULL, 0); \
        return result; \
    }
ON_DESCRIPTOR(ssize_t, pwrite, (int descriptor, const void *from, size_t size, off_t at), (descriptor, from, size, at), int, const void *, size_t, off_t)
ON_DESCRIPTOR(ssize_t, pwrite64, (int descriptor, const void *from, size_t size, off64_t at), (descriptor, from, size, at), int, const void *, size_t, off64_t)
ON_DESCRIPTOR(ssize_t, writev, (int descriptor, const struct iovec *from, int count), (descriptor, from, count), int, const struct iovec *, int)
ON_DESCRIPTOR(ssize_t, pwritev, (int descriptor, const struct iovec *from, int count, off_t at), (descriptor, from, count, at), int, const struct iovec *, int, off_t)
ON_DESCRIPTOR(ssize_t, pwritev64, (int descriptor, const struct iovec *from, int count, off64_t at), (descriptor, from, count, at), int, const struct iovec *, int, off64_t)
ON_DESCRIPTOR(ssize_t, sendfile, (int descriptor, int from, off_t *at, size_t size), (descriptor, from, at, size), int, int, off_t *, size_t)
ON_DESCRIPTOR(ssize_t, sendfile64, (int descriptor, int from, off64_t *at, size_t size), (descriptor, from, at, size), int, int, off64_t *, size_t)
ON_DESCRIPTOR(int, ftruncate, (int descriptor, off_t size), (descriptor, size), int, off_t)
ON_DESCRIPTOR(int, ftruncate64, (int descriptor, off64_t size), (descriptor, size), int, off64_t)
ON_DESCRIPTOR(int, fallocate, (int descriptor, int mode, off_t at, off_t size), (descriptor, mode, at, size), int, int, off_t, off_t)
ON_DESCRIPTOR(int, fallocate64, (int descriptor, int mode, off64_t at, off64_t size), (descriptor, mode, at, size), int, int, off64_t, off64_t)
ON_DESCRIPTOR(int, posix_fallocate, (int descriptor, off_t at, off_t size), (descriptor, at, size), int, off_t, off_t)
ON_DESCRIPTOR(int, posix_fallocate64, (int descriptor, off64_t at, off64_t size), (descriptor, at, size), int, off64_t, off64_t)
ON_DESCRIPTOR(int, fsync, (int descriptor), (descriptor), int)
ON_DESCRIPTOR(int, fdatasync, (int descriptor), (descriptor), int)
ON_DESCRIPTOR(int, syncfs, (int descriptor), (descriptor), int)
ON_DESCRIPTOR(int, fchmod, (int descriptor, mode_t mode), (descriptor, mode), int, mode_t)
ON_DESCRIPTOR(int, fchown, (int descriptor, uid_t user, gid_t group), (descriptor, user, group), int, uid_t, gid_t)
ON_DESCRIPTOR(int, futimens, (int descriptor, const struct timespec times[2]), (descriptor, times), int, const struct timespec *)
ON_DESCRIPTOR(int, futimes, (int descriptor, const struct timeval times[2]), (descriptor, times), int, const struct timeval *)
ON_DESCRIPTOR(int, fsetxattr, (int descriptor, const char *name, const void *value, size_t size, int flags), (descriptor, name, value, size, flags), int, const char *, const void *, size_t, int)
ON_DESCRIPTOR(ssize_t, send, (int descriptor, const void *from, size_t size, int flags), (descriptor, from, size, flags), int, const void *, size_t, int)
ON_DESCRIPTOR(ssize_t, sendto, (int descriptor, const void *from, size_t size, int flags, const struct sockaddr *to, socklen_t length), (descriptor, from, size, flags, to, length), int, const void *, size_t, int, const struct sockaddr *, socklen_t)
ON_DESCRIPTOR(ssize_t, sendmsg, (int descriptor, const struct msghdr *message, int flags), (descriptor, message, flags), int, const struct msghdr *, int)
ON_DESCRIPTOR(int, accept, (int descriptor, struct sockaddr *from, socklen_t *length), (descriptor, from, length), int, struct sockaddr *, socklen_t *)
ON_DESCRIPTOR(int, accept4, (int descriptor, struct sockaddr *from, socklen_t *length, int flags), (descriptor, from, length, flags), int, struct sockaddr *, socklen_t *, int)
ON_DESCRIPTOR(int, shutdown, (int descriptor, int how), (descriptor, how), int, int)

ssize_t copy_file_range(int from, off64_t *from_at, int descriptor, off64_t *at, size_t size, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    struct call call;
    if (!on_descriptor(&call, "copy_file_range", descriptor, 1)) return real(from, from_at, descriptor, at, size, flags);
    ssize_t result = real(from, from_at, descriptor, at, size, flags);
    done(&call, result, NULL, 0);
    return result;
}

static int on_address(struct call *call, const char *name, int descriptor, const struct sockaddr *address) {
    if (address && address->sa_family == AF_UNIX) return on_path(call, name, AT_FDCWD, ((const struct sockaddr_un *)address)->sun_path, 1);
    return on_descriptor(call, name, descriptor, 1);
}

#define ON_ADDRESS(name) \
    int name(int descriptor, const struct sockaddr *address, socklen_t length) { \
        REAL(int, name, int, const struct sockaddr *, socklen_t); \
        struct call call; \
        if (!on_address(&call, #name, descriptor, address)) return real(descriptor, address, length); \
        int result = real(descriptor, address, length); \
        done(&call, result, NULL, 0); \
        return result; \
    }
ON_ADDRESS(connect)
ON_ADDRESS(bind)

#define ON_PATH(name, shown, folder, parameters, arguments, ...) \
    int name parameters { \
        REAL(int, name, __VA_ARGS__); \
        struct call call; \
        if (!on_path(&call, shown, folder, path, 1)) return real arguments; \
        int result = real arguments; \
        done(&call, result, NULL, 0); \
        return result; \
    }
ON_PATH(unlink, "unlink", AT_FDCWD, (const char *path), (path), const char *)
ON_PATH(remove, "unlink", AT_FDCWD, (const char *path), (path), const char *)
ON_PATH(unlinkat, flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, (int folder, const char *path, int flags), (folder, path, flags), int, const char *, int)
ON_PATH(rmdir, "rmdir", AT_FDCWD, (const char *path), (path), const char *)
ON_PATH(mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(mkdirat, "mkdir", folder, (int folder, const char *path, mode_t mode), (folder, path, mode), int, const char *, mode_t)
ON_PATH(mkfifo, "mkfifo", AT_FDCWD, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(truncate, "truncate", AT_FDCWD, (const char *path, off_t size), (path, size), const char *, off_t)
ON_PATH(truncate64, "truncate", AT_FDCWD, (const char *path, off64_t size), (path, size), const char *, off64_t)
ON_PATH(chmod, "chmod", AT_FDCWD, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(fchmodat, "chmod", folder, (int folder, const char *path, mode_t mode, int flags), (folder, path, mode, flags), int, const char *, mode_t, int)
ON_PATH(chown, "chown", AT_FDCWD, (const char *path, uid_t user, gid_t group), (path, user, group), const char *, uid_t, gid_t)
ON_PATH(lchown, "chown", AT_FDCWD, (const char *path, uid_t user, gid_t group), (path, user, group), const char *, uid_t, gid_t)
ON_PATH(fchownat, "chown", folder, (int folder, const char *path, uid_t user, gid_t group, int flags), (folder, path, user, group, flags), int, const char *, uid_t, gid_t, int)
ON_PATH(utime, "utime", AT_FDCWD, (const char *path, const struct utimbuf *times), (path, times), const char *, const struct utimbuf *)
ON_PATH(utimes, "utime", AT_FDCWD, (const char *path, const struct timeval times[2]), (path, times), const char *, const struct timeval *)
ON_PATH(lutimes, "utime", AT_FDCWD, (const char *path, const struct timeval times[2]), (path, times), const char *, const struct timeval *)
ON_PATH(utimensat, "utime", folder, (int folder, const char *path, const struct timespec times[2], int flags), (folder, path, times, flags), int, const char *, const struct timespec *, int)
ON_PATH(setxattr, "setxattr", AT_FDCWD, (const char *path, const char *name, const void *value, size_t size, int flags), (path, name, value, size, flags), const char *, const char *, const void *, size_t, int)
ON_PATH(lsetxattr, "setxattr", AT_FDCWD, (const char *path, const char *name, const void *value, size_t size, int flags), (path, name, value, size, flags), const char *, const char *, const void *, size_t, int)

#define ON_PATHS(name, shown, from_folder, to_folder, parameters, arguments, ...) \
    int name parameters { \
        REAL(int, name, __VA_ARGS__); \
        struct call call; \
        if (!on_paths(&call, shown, from_folder, from, to_folder, to)) return real arguments; \
        int result = real arguments; \
        done(&call, result, NULL, 0); \
        return result; \
    }
ON_PATHS(link, "link", AT_FDCWD, AT_FDCWD, (const char *from, const char *to), (from, to), const char *, const char *)
ON_PATHS(linkat, "link", folder, to_folder, (int folder, const char *from, int to_folder, const char *to, int flags), (folder, from, to_folder, to, flags), int, const char *, int, const char *, int)
ON_PATHS(rename, "rename", AT_FDCWD, AT_FDCWD, (const char *from, const char *to), (from, to), const char *, const char *)
ON_PATHS(renameat, "rename", folder, to_folder, (int folder, const char *from, int to_folder, const char *to), (folder, from, to_folder, to), int, const char *, int, const char *)
ON_PATHS(renameat2, "rename", folder, to_folder, (int folder, const char *from, int to_folder, const char *to, unsigned flags), (folder, from, to_folder, to, flags), int, const char *, int, const char *, unsigned)

int symlink(const char *content, const char *path) {
    REAL(int, symlink, const char *, const char *);
    struct call call;
    if (!on_path(&call, "symlink", AT_FDCWD, path, 1)) return real(content, path);
    int result = real(content, path);
    done(&call, result, NULL, 0);
    return result;
}

int symlinkat(const char *content, int folder, const char *path) {
    REAL(int, symlinkat, const char *, int, const char *);
    struct call call;
    if (!on_path(&call, "symlink", folder, path, 1)) return real(content, folder, path);
    int result = real(content, folder, path);
    done(&call, result, NULL, 0);
    return result;
}

int ioctl(int descriptor, unsigned long request, ...) {
    REAL(int, ioctl, int, unsigned long, ...);
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    struct call call;
    int clones = request == FICLONE || request == FICLONERANGE;
    if (!clones || !on_descriptor(&call, "reflink", descriptor, 1)) return real(descriptor, request, argument);
    int result = real(descriptor, request, argument);
    done(&call, result, NULL, 0);
    return result;
}

/* What is called by number: the few that a library may reach for because libc had no name for them. */
long syscall(long number, ...) {
    REAL(long, syscall, long, ...);
    va_list rest;
    va_start(rest, number);
    long a[6];
    for (int n = 0; n < 6; n++) a[n] = va_arg(rest, long);
    va_end(rest);
    struct call call;
    int is_ours = 0;
    if (is_inside || !control) is_ours = 0;
    else if (number == SYS_renameat2) is_ours = on_paths(&call, "rename", (int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3]);
    else if (number == SYS_openat2) is_ours = on_path(&call, "open to write", (int)a[0], (const char *)a[1], 1);
    else if (number == SYS_copy_file_range) is_ours = on_descriptor(&call, "copy_file_range", (int)a[2], 1);
    long result = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (is_ours) done(&call, result, NULL, 0);
    return result;
}

/* ---- seen by the recorder only: whether a copy was read back ---- */

#define READS(result_type, name, parameters, arguments, ...) \
    result_type name parameters { \
        REAL(result_type, name, __VA_ARGS__); \
        struct call call; \
        if (!control || control->mode == OFF || !on_descriptor(&call, #name, descriptor, 0)) return real arguments; \
        result_type result = real arguments; \
        done(&call, (int64_t)result, NULL, 0); \
        return result; \
    }
READS(ssize_t, read, (int descriptor, void *into, size_t size), (descriptor, into, size), int, void *, size_t)
READS(ssize_t, readv, (int descriptor, const struct iovec *into, int count), (descriptor, into, count), int, const struct iovec *, int)
READS(ssize_t, pread, (int descriptor, void *into, size_t size, off_t at), (descriptor, into, size, at), int, void *, size_t, off_t)
READS(ssize_t, pread64, (int descriptor, void *into, size_t size, off64_t at), (descriptor, into, size, at), int, void *, size_t, off64_t)
READS(int, posix_fadvise, (int descriptor, off_t at, off_t size, int advice), (descriptor, at, size, advice), int, off_t, off_t, int)
READS(int, posix_fadvise64, (int descriptor, off64_t at, off64_t size, int advice), (descriptor, at, size, advice), int, off64_t, off64_t, int)
