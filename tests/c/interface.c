/* The C interface, function by function. Prints what is not as it must be, and exits with how many things were not. */

#include <ascetic.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int failures;

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            printf("line %d: not so: %s; last error: %d %s\n", __LINE__, #what, error.code, error.text);               \
            failures++;                                                                                                \
        }                                                                                                              \
    } while (0)

static ascetic_error error;
static char record[ASCETIC_RECORD_MAX];

static int calls(void *arg)
{
    size_t none[6] = {0};
    int allowed = ascetic_is_guest() && ascetic_call(SYS_getppid, none) > 0;
    return allowed && ascetic_call(SYS_uname, none) == -ENOSYS ? *(int *)arg : 1;
}

static int crashes(void *arg)
{
    ascetic_annotate("input", "example");
    *(volatile int *)arg = 1;
    return 0;
}

static int aborts(void *arg)
{
    (void)arg;
    ascetic_abort();
}

static int exits(void *arg)
{
    ascetic_exit(*(int *)arg);
}

static int hangs(void *arg)
{
    for (volatile int i = 0;; i++)
        if (arg)
            return i;
}

static int opens(void *path)
{
    return open(path, O_RDONLY) >= 0 ? 0 : errno;
}

static void remember(const ascetic_refusal *refusal, void *user)
{
    snprintf(user, 256, "%.*s %.*s %d", (int)refusal->name_len, refusal->name, (int)refusal->path_len, refusal->path,
             refusal->sys_errno);
}

static void policies(void)
{
    ascetic_policy *policy = ascetic_policy_new(), *other = ascetic_policy_new();
    ascetic_address address = {"\2\0\0\120", 4}, empty = {"", 0}, below = {"\1\0/etc/socket", 14};
    ascetic_limits limits = {4, 64, 1 << 20, 1000};

    CHECK(ascetic_policy_default_errno(policy, EPERM, &error) == 0);
    CHECK(ascetic_policy_default_errno(policy, 0, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_ordinary(policy, NULL) == 0);
    CHECK(ascetic_policy_ordinary(NULL, &error) == ASCETIC_E_ARGUMENT && error.party == ASCETIC_PARTY_EMBEDDER);
    CHECK(ascetic_policy_ordinary(NULL, NULL) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_direct(policy, SYS_getppid, &error) == 0);
    CHECK(ascetic_policy_direct(policy, -1, &error) == ASCETIC_E_NO_CALL);
    CHECK(ascetic_policy_direct(policy, SYS_kill, &error) == ASCETIC_E_NOT_DIRECT && strstr(error.text, "`kill`"));
    CHECK(ascetic_policy_direct_name(policy, "nanosleep", &error) == 0);
    CHECK(ascetic_policy_direct_name(policy, "nanosloop", &error) == ASCETIC_E_NO_CALL);
    CHECK(ascetic_policy_direct_name(policy, NULL, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_refuse(policy, SYS_uname, EPERM, &error) == 0);
    CHECK(ascetic_policy_refuse(policy, SYS_uname, 4096, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_direct(policy, SYS_uname, &error) == ASCETIC_E_NOT_DIRECT && strstr(error.text, "by name"));
    CHECK(ascetic_policy_root(policy, "/usr/../etc", ASCETIC_READ, &error) == ASCETIC_E_PATH);
    CHECK(ascetic_policy_root(policy, "etc", ASCETIC_READ, &error) == ASCETIC_E_PATH);
    CHECK(ascetic_policy_root(policy, "/etc", 16, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_file(policy, "/", ASCETIC_READ, &error) == ASCETIC_E_PATH);
    CHECK(ascetic_policy_root(other, "/etc", ASCETIC_READ | ASCETIC_CREATE, &error) == 0);
    CHECK(ascetic_policy_root(other, "/etc/hidden", 0, &error) == ASCETIC_E_CONFLICT);
    CHECK(strstr(error.text, "`/etc/hidden` is in the root `/etc`"));
    CHECK(ascetic_policy_family(other, 1, &below, 1, &error) == ASCETIC_E_CONFLICT);
    CHECK(strstr(error.text, "`/etc/socket` is in the root `/etc`") && error.party == ASCETIC_PARTY_EMBEDDER);
    ascetic_policy_free(other);
    for (int i = 0; i < 16; i++)
        CHECK(ascetic_policy_root(policy, "/etc", ASCETIC_READ | ASCETIC_EXECUTE, &error) == 0);
    CHECK(ascetic_policy_file(policy, "/mnt/passwd", ASCETIC_READ, &error) == ASCETIC_E_FULL);
    CHECK(ascetic_policy_locks_and_flags(policy, &error) == 0 && ascetic_policy_no_links(policy, &error) == 0 && ascetic_policy_memory(policy, &error) == 0);
    CHECK(ascetic_policy_executable(policy, &error) == 0 && ascetic_policy_w_xor_x(policy, &error) == 0);
    CHECK(ascetic_policy_signals(policy, &error) == 0);
    for (unsigned i = 0; i < 16; i++) {
        CHECK(ascetic_policy_ioctl(policy, i, &error) == 0);
        CHECK(ascetic_policy_option(policy, 1, i, &error) == 0);
        CHECK(ascetic_policy_protocol(policy, 16, i, &error) == 0);
    }
    CHECK(ascetic_policy_protocol(policy, 16, 16, &error) == ASCETIC_E_FULL);
    CHECK(ascetic_policy_listen(policy, &error) == 0);
    CHECK(ascetic_policy_ioctl(policy, 16, &error) == ASCETIC_E_FULL);
    CHECK(ascetic_policy_option(policy, 1, 16, &error) == ASCETIC_E_FULL);
    CHECK(ascetic_policy_family(policy, 2, &empty, 1, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_family(policy, 2, NULL, 1, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_family(policy, 1, NULL, 0, &error) == 0);
    for (int i = 2; i < 5; i++)
        CHECK(ascetic_policy_family(policy, i, &address, 1, &error) == 0);
    CHECK(ascetic_policy_family(policy, 2, &address, 1, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_family(policy, 5, &address, 1, &error) == ASCETIC_E_FULL);
    CHECK(ascetic_policy_limits(policy, &limits, &error) == 0 && ascetic_policy_threads(policy, 256, &error) == 0);
    CHECK(ascetic_policy_threads(policy, 257, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_policy_limits(policy, NULL, &error) == ASCETIC_E_ARGUMENT);
    ascetic_policy_free(policy);
    ascetic_policy_free(NULL);
}

static void configurations(void)
{
    ascetic_policy *policy = ascetic_policy_new();
    ascetic_sandbox *sandbox;
    ascetic_config config;
    ascetic_outcome outcome;
    int value = 41, closed[] = {1000};
    struct {
        ascetic_config config;
        size_t later;
    } newer;

    CHECK(ascetic_policy_direct(policy, SYS_getppid, &error) == 0);
    memset(&newer, 0xff, sizeof newer);
    ascetic_config_init(&newer.config, sizeof newer);
    CHECK(newer.later == 0);
    CHECK(ascetic_spawn(policy, &newer.config, calls, &value, &sandbox, &error) == 0);
    ascetic_free(sandbox);
    newer.later = 1;
    CHECK(ascetic_spawn(policy, &newer.config, calls, &value, &sandbox, &error) == ASCETIC_E_ARGUMENT);
    newer.config.size = offsetof(ascetic_config, keep); /* an older one, which ended there */
    CHECK(ascetic_spawn(policy, &newer.config, calls, &value, &sandbox, &error) == 0);
    ascetic_free(sandbox);
    newer.config.size = 0;
    CHECK(ascetic_spawn(policy, &newer.config, calls, &value, &sandbox, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_spawn(policy, NULL, calls, &value, NULL, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_spawn(policy, NULL, NULL, &value, &sandbox, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_spawn(NULL, NULL, calls, &value, &sandbox, &error) == ASCETIC_E_ARGUMENT);

    ascetic_config_init(&config, sizeof config);
    config.keep = closed;
    config.keep_len = 1;
    CHECK(ascetic_spawn(policy, &config, calls, &value, &sandbox, &error) == ASCETIC_E_CLOSED_DESCRIPTOR);
    CHECK(ascetic_enter(policy, &config, &error) == ASCETIC_E_CLOSED_DESCRIPTOR && !ascetic_is_guest());
    config.keep = NULL;
    CHECK(ascetic_spawn(policy, &config, calls, &value, &sandbox, &error) == ASCETIC_E_ARGUMENT);
    ascetic_config_init(&config, sizeof config);
    config.stack = 1;
    CHECK(ascetic_spawn(policy, &config, calls, &value, &sandbox, &error) == ASCETIC_E_STACK);
    ascetic_config_init(&config, sizeof config);
    config.placement = 9;
    CHECK(ascetic_spawn(policy, &config, calls, &value, &sandbox, &error) == ASCETIC_E_ARGUMENT);
    ascetic_config_init(&config, sizeof config);
    config.lockdown = ASCETIC_LOCKDOWN_FILTER;
    config.filter_write = closed;
    config.filter_write_len = 1;
    config.placement = ASCETIC_PLACEMENT_TOGETHER;
    CHECK(ascetic_spawn(policy, &config, calls, &value, &sandbox, &error) == 0);
    CHECK(ascetic_wait(sandbox, ASCETIC_FOREVER, &outcome, &error) == 0 && WEXITSTATUS(outcome.guest) == 41);
    ascetic_free(sandbox);
    ascetic_policy_free(policy);
}

static void sandboxes(void)
{
    ascetic_policy *policy = ascetic_policy_new();
    ascetic_sandbox *sandbox, *second;
    ascetic_config config;
    ascetic_outcome outcome;
    int value = 41, trusted = 0, guest = 0, ended;
    char last[256] = "";

    CHECK(ascetic_policy_direct(policy, SYS_getppid, &error) == 0);
    CHECK(ascetic_policy_root(policy, "/usr", ASCETIC_READ, &error) == 0);
    CHECK(ascetic_spawn(policy, NULL, calls, &value, &sandbox, &error) == 0);
    CHECK(ascetic_policy_memory(policy, &error) == ASCETIC_E_IN_USE);
    CHECK(ascetic_pids(sandbox, &trusted, &guest, &error) == 0 && trusted > 0 && guest > 0);
    CHECK(ascetic_wait(sandbox, ASCETIC_FOREVER, &outcome, &error) == 0 && outcome.cause == ASCETIC_CAUSE_GUEST);
    CHECK(WIFEXITED(outcome.guest) && WEXITSTATUS(outcome.guest) == 41 && WIFSIGNALED(outcome.trusted));
    CHECK(ascetic_record(sandbox, record, sizeof record) == 0);
    ascetic_free(sandbox);
    CHECK(ascetic_policy_memory(policy, &error) == 0);

    CHECK(ascetic_spawn(policy, NULL, exits, &value, &sandbox, &error) == 0);
    CHECK(ascetic_wait(sandbox, 5000, &outcome, &error) == 0 && WEXITSTATUS(outcome.guest) == 41);
    ascetic_free(sandbox);

    CHECK(ascetic_spawn(policy, NULL, crashes, (void *)0x1234, &sandbox, &error) == 0);
    CHECK(ascetic_wait(sandbox, 5000, &outcome, &error) == 0 && WTERMSIG(outcome.guest) == SIGSEGV);
    CHECK(ascetic_record(sandbox, record, sizeof record) > 100 && ascetic_record(sandbox, record, 64) == 64);
    ascetic_free(sandbox);

    CHECK(ascetic_spawn(policy, NULL, aborts, NULL, &sandbox, &error) == 0);
    CHECK(ascetic_wait(sandbox, 5000, &outcome, &error) == 0 && WTERMSIG(outcome.guest) == SIGABRT);
    ascetic_free(sandbox);

    CHECK(ascetic_spawn(policy, NULL, hangs, NULL, &sandbox, &error) == 0);
    CHECK(ascetic_wait(sandbox, 20, &outcome, &error) == 0 && outcome.cause == ASCETIC_CAUSE_DEADLINE);
    ascetic_free(sandbox);
    for (int late = -1000; late < 0; late += 999) { /* what is over is over */
        CHECK(ascetic_spawn(policy, NULL, hangs, NULL, &sandbox, &error) == 0);
        CHECK(ascetic_serve(sandbox, late, &outcome, &error) == 0);
        CHECK(ascetic_wait(sandbox, late, &outcome, &error) == 0 && outcome.cause == ASCETIC_CAUSE_DEADLINE);
        ascetic_free(sandbox);
    }
    CHECK(ascetic_spawn(policy, NULL, hangs, NULL, &sandbox, &error) == 0);
    CHECK(ascetic_kill(sandbox, &outcome, &error) == 0 && outcome.cause == ASCETIC_CAUSE_KILLED);
    ascetic_free(sandbox);
    CHECK(ascetic_spawn(policy, NULL, hangs, NULL, &sandbox, &error) == 0);
    ascetic_free(sandbox);

    /* The policy lives as long as its sandbox. */
    ascetic_config_init(&config, sizeof config);
    config.dispatch = 1;
    CHECK(ascetic_spawn(policy, &config, opens, "/etc/shadow", &sandbox, &error) == 0);
    ascetic_policy_free(policy);
    ascetic_policy_free(policy); /* does nothing */
    CHECK(ascetic_policy_memory(policy, &error) == ASCETIC_E_IN_USE);
    CHECK(ascetic_spawn(policy, NULL, hangs, NULL, &second, &error) == ASCETIC_E_ARGUMENT);
    CHECK(strstr(error.text, "freed") && ascetic_enter(policy, NULL, &error) == ASCETIC_E_ARGUMENT);
    CHECK(ascetic_descriptor(sandbox) > 0 && ascetic_patience(sandbox) >= -1);
    while ((ended = ascetic_serve(sandbox, 5000, &outcome, &error)) == 0)
        continue;
    CHECK(ended == 1 && WIFEXITED(outcome.guest) && WEXITSTATUS(outcome.guest) == EACCES);
    CHECK(ascetic_refusals(sandbox, remember, last) == 1 && strcmp(last, "openat /etc/shadow 13") == 0);
    ascetic_free(sandbox);
    ascetic_free(NULL);
    CHECK(ascetic_wait(NULL, 0, NULL, &error) == ASCETIC_E_ARGUMENT && ascetic_descriptor(NULL) == -1);
}

static void reported(ascetic_sandbox *sandbox, const ascetic_outcome *outcome, void *user)
{
    CHECK(WIFEXITED(outcome->guest) && WEXITSTATUS(outcome->guest) == 0);
    CHECK(ascetic_wait(sandbox, 0, NULL, &error) == ASCETIC_E_LENT);
    CHECK(ascetic_kill(sandbox, NULL, &error) == ASCETIC_E_LENT);
    ascetic_free(sandbox); /* does nothing */
    CHECK(ascetic_refusals(sandbox, NULL, NULL) >= 1);
    printf("%s, %d failures\n", (char *)user, failures);
    fflush(stdout);
}

static void enters(void)
{
    static const int keep[] = {1, 2};
    ascetic_policy *policy = ascetic_policy_new();
    ascetic_config config;

    CHECK(ascetic_policy_ordinary(policy, &error) == 0);
    ascetic_config_init(&config, sizeof config);
    config.keep = keep;
    config.keep_len = 2;
    config.dispatch = 1;
    config.deadline_ms = 10000;
    config.report = reported;
    config.user = "reported";
    fflush(stdout);
    CHECK(ascetic_enter(policy, &config, &error) == 0 && ascetic_is_guest());
    CHECK(ascetic_enter(policy, &config, &error) < 0);
}

int main(void)
{
    size_t none[6] = {0};

    CHECK(!ascetic_is_guest() && ascetic_call(SYS_getppid, none) == -EPERM);
    CHECK(strcmp(ascetic_strerror(0), "success") == 0 && *ascetic_strerror(-12345));
    policies();
    configurations();
    sandboxes();
    enters();
    printf("guest, %d failures\n", failures);
    return failures;
}
