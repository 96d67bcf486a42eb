/* Gives a process another clock: the machine's, and the seconds that a file holds.

   Loaded in front of the C library (LD_PRELOAD). The file (CLOCK_FILE) has one number of 64 bits; its
   change sets the clock, as a person sets it: the times change, and waits until a time of day end by
   the new one, those of Ray's own processes among them. Monotonic clocks and waits of a length stay
   as they are; so do the times of files. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* A wait until a time of day looks so often whether the clock was set. */
enum { LOOK_EVERY_NS = 50000000, SECOND_NS = 1000000000 };

static const volatile int64_t *ahead_s;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *found = mmap(NULL, sizeof *ahead_s, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED)
        ahead_s = found;
}

static time_t ahead(void)
{
    return ahead_s ? (time_t)*ahead_s : 0;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int is_of_day(clockid_t clock)
{
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(clock_gettime);
    int failed = real(clock, now);
    if (!failed && is_of_day(clock))
        now->tv_sec += ahead();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    REAL(gettimeofday);
    int failed = real(now, zone);
    if (!failed)
        now->tv_sec += ahead();
    return failed;
}

time_t time(time_t *now)
{
    REAL(time);
    time_t found = real(NULL) + ahead();
    if (now)
        *now = found;
    return found;
}

int timespec_get(struct timespec *now, int base)
{
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

/* Returns whether a time of day has come; otherwise gives the machine's time of the next look. */
static int has_come(const struct timespec *until, struct timespec *look)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t left_ns = (int64_t)(until->tv_sec - now.tv_sec) * SECOND_NS + until->tv_nsec - now.tv_nsec;
    if (left_ns <= 0)
        return 1;
    int64_t next_ns = now.tv_nsec + (left_ns < LOOK_EVERY_NS ? left_ns : LOOK_EVERY_NS);
    look->tv_sec = now.tv_sec - ahead() + next_ns / SECOND_NS;
    look->tv_nsec = next_ns % SECOND_NS;
    return 0;
}

/* Where glibc says that a condition's waits are by the monotonic clock. */
static int is_monotonic(const pthread_cond_t *condition)
{
    return condition->__data.__wrefs & 2;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    REAL(pthread_cond_timedwait);
    struct timespec look = {0};
    if (is_monotonic(condition))
        return real(condition, mutex, until);
    int is_over = has_come(until, &look);
    int result = real(condition, mutex, &look);
    /* A wait for a condition may end without a reason: whoever waits looks at it again. */
    return result == ETIMEDOUT && !is_over ? 0 : result;
}

static long (*system_call)(long number, ...);

static long futex_wait(const long *given, const struct timespec *until)
{
    for (;;) {
        struct timespec look = {0};
        int is_over = has_come(until, &look);
        long failed = system_call(SYS_futex, given[0], given[1], given[2], &look, given[4], given[5]);
        if (!failed || errno != ETIMEDOUT || is_over)
            return failed;
    }
}

long syscall(long number, ...)
{
    long given[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        given[i] = va_arg(list, long);
    va_end(list);
    if (!system_call)
        system_call = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_futex && given[3]
        && (given[1] & ~FUTEX_PRIVATE_FLAG) == (FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME))
        return futex_wait(given, (const struct timespec *)given[3]);
    return system_call(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
