/* What the programs have in common that run other people's code as a guest. */

#include <ascetic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define MUST(what)                                                                                                     \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            printf("line %d: not so: %s\n", __LINE__, #what);                                                          \
            fflush(stdout);                                                                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Allows calls by their names. */
static inline void allow(ascetic_policy *policy, const char *const *names)
{
    ascetic_error error;

    for (; *names; names++)
        if (ascetic_policy_direct_name(policy, *names, &error) < 0) {
            printf("%s\n", error.text);
            exit(2);
        }
}

static void print_refusal(const ascetic_refusal *refusal, void *user)
{
    (void)user;
    printf("refused: %.*s %.*s: %.*s\n", (int)refusal->name_len, refusal->name, (int)refusal->path_len, refusal->path,
           (int)refusal->rule_len, refusal->rule);
}

/* In the supervisor: what was refused, and how the guest ended. `user` is what else to do there, a function without
 * arguments. */
static void print_end(ascetic_sandbox *sandbox, const ascetic_outcome *outcome, void *user)
{
    ascetic_refusals(sandbox, print_refusal, NULL);
    if (WIFEXITED(outcome->guest))
        printf("supervisor: exit status %d\n", WEXITSTATUS(outcome->guest));
    else
        printf("supervisor: signal %d\n", WTERMSIG(outcome->guest));
    if (user)
        (*(void (**)(void))user)();
    fflush(stdout);
}

/* Goes on as a guest with caught calls, in strict mode. */
static void become_guest(ascetic_policy *policy, const int *keep, size_t keep_len, void (**afterwards)(void))
{
    ascetic_error error;
    ascetic_config config;

    ascetic_config_init(&config, sizeof config);
    config.keep = keep;
    config.keep_len = keep_len;
    config.dispatch = 1;
    config.deadline_ms = 50000;
    config.report = print_end;
    config.user = afterwards;
    fflush(stdout);
    if (ascetic_enter(policy, &config, &error) < 0) {
        printf("%s\n", error.text);
        exit(2);
    }
}
