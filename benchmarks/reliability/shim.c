/* Counts the file operations below one folder; at a chosen one the process dies, or it fails.

   Preloaded (LD_PRELOAD) into every process of a run, so that operations of Python, Rust and C++ are
   all intercepted. The clock of these processes can be made to jump back and forth with every
   operation. All of them map a file (REGROW_SHIM) with instructions; see shim.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LOG_BYTES (1 << 20)
enum { NOTHING, DIE, FAIL, SHORT, TORN };  /* as in shim.py */

struct control {
  _Atomic int armed;
  _Atomic int count;  /* operations so far */
  _Atomic int hit;    /* how many the action was applied to */
  int at;             /* the first one to apply it to, from 1 */
  int action;
  int error;          /* errno of failures */
  int lasting;        /* also apply it to later ones that need disk space: the disk stays full */
  int reads;          /* count and hit reads instead of writes */
  int jump;           /* seconds that the clock is ahead, and behind after the next operation */
  _Atomic int logged; /* bytes of the log */
  char prefix[4096];
  char log[LOG_BYTES];
};

static struct control *shared;

__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("REGROW_SHIM");
  int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
  int file = name ? real_open(name, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *map = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (map != MAP_FAILED) shared = map;
  close(file);
}

static int below(int folder, const char *path, char *whole) {
  char start[PATH_MAX] = "", link[64];
  if (path[0] != '/') {
    if (folder == AT_FDCWD) {
      if (!getcwd(start, sizeof start)) return 0;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t length = readlink(link, start, sizeof start - 1);
      if (length < 0) return 0;
      start[length] = 0;
    }
    strncat(start, "/", sizeof start - strlen(start) - 1);
  }
  snprintf(whole, PATH_MAX, "%s%s", start, path[0] ? path : "");
  return strncmp(whole, shared->prefix, strlen(shared->prefix)) == 0;
}

static int below_file(int file, char *whole) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, whole, PATH_MAX - 1);
  if (length < 0) return 0;
  whole[length] = 0;
  return strncmp(whole, shared->prefix, strlen(shared->prefix)) == 0;
}

static void note(const char *name, const char *path) {
  char line[PATH_MAX + 32];
  int length = snprintf(line, sizeof line, "%s %s\n", name, path + strlen(shared->prefix));
  int place = atomic_fetch_add(&shared->logged, length);
  if (place + length < LOG_BYTES) memcpy(shared->log + place, line, length);
}

/* Count an operation, and return the action to apply to it. */
static int fate(const char *name, const char *path, int takes_room) {
  int number = atomic_fetch_add(&shared->count, 1) + 1;
  if (shared->action == NOTHING) note(name, path);
  if (shared->action == NOTHING || number < shared->at) return NOTHING;
  if (number > shared->at && !(shared->lasting && takes_room)) return NOTHING;
  atomic_fetch_add(&shared->hit, 1);
  if (number == shared->at) note(name, path);
  return shared->action;
}

static void die(void) {
  kill(getpid(), SIGKILL);
  pause();
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = dlsym(RTLD_NEXT, #name)
#define ON (shared && shared->armed)
/* Die before the operation, or return an error without doing it or (torn) after doing it. */
#define MEET(name, is_below, room, call, bad)                       \
  do {                                                              \
    char whole[PATH_MAX];                                           \
    if (ON && !shared->reads && (is_below)) {                       \
      int what = fate(name, whole, room);                           \
      if (what == DIE) die();                                       \
      if (what == TORN) (void)(call);                               \
      if (what == FAIL || what == TORN) { errno = shared->error; return bad; } \
    }                                                               \
    return call;                                                    \
  } while (0)

static int open_fate(int folder, const char *path, int flags) {
  char whole[PATH_MAX];
  if (!ON || !below(folder, path, whole)) return NOTHING;
  int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
  if (!!writes == !!shared->reads) return NOTHING;
  return fate(writes ? "open" : "read-open", whole, flags & O_CREAT);
}

#define OPEN(name, folder, parameters, ...)                          \
  int name parameters {                                              \
    REAL(name);                                                      \
    mode_t mode = 0;                                                 \
    if (flags & (O_CREAT | O_TMPFILE)) {                             \
      va_list rest;                                                  \
      va_start(rest, flags);                                         \
      mode = va_arg(rest, mode_t);                                   \
      va_end(rest);                                                  \
    }                                                                \
    int what = open_fate(folder, path, flags);                       \
    if (what == DIE) die();                                          \
    if (what == FAIL || what == TORN) { errno = shared->error; return -1; } \
    return real(__VA_ARGS__, flags, mode);                           \
  }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path)
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path)
OPEN(openat, folder, (int folder, const char *path, int flags, ...), folder, path)
OPEN(openat64, folder, (int folder, const char *path, int flags, ...), folder, path)

/* Only half of the bytes are written if the process dies or the write is short. */
#define WRITE(name, parameters, half, ...)                                              \
  ssize_t name parameters {                                                             \
    REAL(name);                                                                         \
    char whole[PATH_MAX];                                                               \
    if (ON && !shared->reads && below_file(file, whole)) {                              \
      int what = fate("write", whole, 1);                                               \
      size_t size = length / 2;                                                         \
      (void)size;                                                                       \
      if (what == DIE) { if (size) (void)!(half); die(); }                              \
      if (what == SHORT && size) return half;                                           \
      if (what == TORN && size) (void)!(half);                                          \
      if (what == FAIL || what == TORN) { errno = shared->error; return -1; }           \
    }                                                                                   \
    return real(__VA_ARGS__);                                                           \
  }
WRITE(write, (int file, const void *from, size_t length), real(file, from, size), file, from, length)
WRITE(pwrite, (int file, const void *from, size_t length, off_t at), real(file, from, size, at),
      file, from, length, at)
WRITE(pwrite64, (int file, const void *from, size_t length, off64_t at),
      real(file, from, size, at), file, from, length, at)
ssize_t writev(int file, const struct iovec *parts, int length) {
  REAL(writev);
  MEET("write", below_file(file, whole), 1, real(file, parts, length), -1);
}

ssize_t read(int file, void *to, size_t length) {
  REAL(read);
  char whole[PATH_MAX];
  if (ON && shared->reads && below_file(file, whole)) {
    int what = fate("read", whole, 0);
    if (what == DIE) die();
    if (what == SHORT && length > 1) return real(file, to, length / 2);
    if (what == FAIL || what == TORN) { errno = shared->error; return -1; }
  }
  return real(file, to, length);
}

int fsync(int file) { REAL(fsync); MEET("fsync", below_file(file, whole), 1, real(file), -1); }
int fdatasync(int file) { REAL(fdatasync); MEET("fsync", below_file(file, whole), 1, real(file), -1); }
int ftruncate(int file, off_t size) {
  REAL(ftruncate); MEET("ftruncate", below_file(file, whole), 1, real(file, size), -1);
}
int ftruncate64(int file, off64_t size) {
  REAL(ftruncate64); MEET("ftruncate", below_file(file, whole), 1, real(file, size), -1);
}
int rename(const char *from, const char *to) {
  REAL(rename); MEET("rename", below(AT_FDCWD, to, whole), 0, real(from, to), -1);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat); MEET("rename", below(b, to, whole), 0, real(a, from, b, to), -1);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(renameat2); MEET("rename", below(b, to, whole), 0, real(a, from, b, to, flags), -1);
}
int link(const char *from, const char *to) {
  REAL(link); MEET("link", below(AT_FDCWD, to, whole), 1, real(from, to), -1);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
  REAL(linkat); MEET("link", below(b, to, whole), 1, real(a, from, b, to, flags), -1);
}
int symlink(const char *from, const char *to) {
  REAL(symlink); MEET("symlink", below(AT_FDCWD, to, whole), 1, real(from, to), -1);
}
int unlink(const char *path) {
  REAL(unlink); MEET("unlink", below(AT_FDCWD, path, whole), 0, real(path), -1);
}
int unlinkat(int folder, const char *path, int flags) {
  REAL(unlinkat); MEET("unlink", below(folder, path, whole), 0, real(folder, path, flags), -1);
}
int rmdir(const char *path) {
  REAL(rmdir); MEET("rmdir", below(AT_FDCWD, path, whole), 0, real(path), -1);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir); MEET("mkdir", below(AT_FDCWD, path, whole), 1, real(path, mode), -1);
}
int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(mkdirat); MEET("mkdir", below(folder, path, whole), 1, real(folder, path, mode), -1);
}

static long ahead(void) {
  if (!ON || !shared->jump) return 0;
  return shared->count % 2 ? shared->jump : -(long)shared->jump;
}
int clock_gettime(clockid_t clock, struct timespec *to) {
  REAL(clock_gettime);
  int result = real(clock, to);
  if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) to->tv_sec += ahead();
  return result;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
  REAL(gettimeofday);
  int result = real(to, zone);
  if (!result) to->tv_sec += ahead();
  return result;
}
time_t time(time_t *to) {
  REAL(time);
  time_t now = real(NULL) + ahead();
  if (to) *to = now;
  return now;
}
