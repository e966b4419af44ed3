/* Signals as a libc's programs use them, by a guest whose calls are caught. Prints what is not as it must be. */

#include "guest.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t calls;
static sigjmp_buf back;
static volatile int *volatile nowhere = (volatile int *)8;

static void counts(int sig)
{
    (void)sig;
    calls++;
}

static void jumps(int sig)
{
    siglongjmp(back, sig);
}

/* A handler that makes the page writable, so that the store goes on. */
static void maps(int sig, siginfo_t *info, void *context)
{
    (void)context;
    MUST(sig == SIGSEGV && info->si_code == SEGV_ACCERR);
    MUST(mprotect((void *)((uintptr_t)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE) == 0);
    calls++;
}

static void set(int sig, void (*handler)(int), int flags)
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags;
    MUST(sigaction(sig, &action, NULL) == 0);
}

static void *takes_jump(void *arg)
{
    (void)arg;
    stack_t stack = {.ss_sp = malloc(SIGSTKSZ), .ss_size = SIGSTKSZ};

    MUST(sigaltstack(&stack, NULL) == 0);
    if (sigsetjmp(back, 1) == 0)
        *nowhere = 1;
    sigset_t now;
    MUST(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0 && !sigismember(&now, SIGSEGV));
    stack.ss_flags = SS_DISABLE;
    MUST(sigaltstack(&stack, NULL) == 0);
    free(stack.ss_sp);
    return &back;
}

static volatile int computing;

static void *computes(void *arg)
{
    computing = 1;
    while (calls == 0)
        ;
    computing = 0;
    return arg;
}

static void *runs_until_cancelled(void *arg)
{
    computing = 1;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    for (;;)
        computing++;
    return arg;
}

static void guest(void)
{
    pthread_t thread;
    void *result;

    set(SIGUSR1, counts, SA_RESTART);
    MUST(raise(SIGUSR1) == 0 && calls == 1);
    MUST(kill(getpid(), SIGUSR1) == 0 && calls == 2);

    /* A fault that is handled by going on elsewhere, again and again, from a thread, on its alternate stack. */
    set(SIGSEGV, jumps, SA_ONSTACK);
    for (int i = 0; i < 50; i++) {
        MUST(pthread_create(&thread, NULL, takes_jump, NULL) == 0);
        MUST(pthread_join(thread, &result) == 0 && result == &back);
    }

    /* Faults that are handled by repair. */
    struct sigaction action = {.sa_sigaction = maps, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &action, NULL) == 0);
    calls = 0;
    char *pages = mmap(NULL, 64 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(pages != MAP_FAILED);
    for (int i = 0; i < 64; i++)
        pages[i * 4096 + i] = (char)i;
    MUST(calls == 64 && pages[63 * 4096 + 63] == 63);

    /* pthread_kill and pthread_cancel find a thread that computes. */
    calls = 0;
    MUST(pthread_create(&thread, NULL, computes, &back) == 0);
    while (!computing)
        ;
    MUST(pthread_kill(thread, SIGUSR1) == 0);
    MUST(pthread_join(thread, &result) == 0 && result == &back && calls == 1);
    MUST(pthread_create(&thread, NULL, runs_until_cancelled, NULL) == 0);
    while (!computing)
        ;
    MUST(pthread_cancel(thread) == 0);
    MUST(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);

    /* A mask, and waiting with another. */
    sigset_t none, one;
    sigemptyset(&none);
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    MUST(pthread_sigmask(SIG_BLOCK, &one, NULL) == 0);
    calls = 0;
    MUST(raise(SIGUSR1) == 0 && calls == 0);
    MUST(sigsuspend(&none) == -1 && errno == EINTR && calls == 1);

    /* abort() in a handler's presence. */
    set(SIGABRT, jumps, 0);
    if (sigsetjmp(back, 1) == 0)
        abort();
    printf("guest: all as it must be\n");
}

int main(void)
{
    ascetic_policy *policy = ascetic_policy_new();

    MUST(dlopen("libgcc_s.so.1", RTLD_NOW)); /* what glibc loads when a thread is cancelled: the guest has no files */
    MUST(ascetic_policy_ordinary(policy, NULL) == 0 && ascetic_policy_memory(policy, NULL) == 0);
    MUST(ascetic_policy_threads(policy, 4, NULL) == 0 && ascetic_policy_signals(policy, NULL) == 0);
    become_guest(policy, (int[]){1, 2}, 2, NULL);
    guest();
    return 0;
}
