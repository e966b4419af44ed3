/* An ordinary C program that becomes its own guest: after ascetic_enter() it goes on where it was, in strict mode, and its
 * files, threads and output are brokered calls.
 *
 *     cargo build --release -p ascetic-c
 *     cc examples/embed.c -Iinclude -Ltarget/release -lascetic -pthread -o target/embed && target/embed
 */

#include <ascetic.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static void *add(void *numbers)
{
    const int *n = numbers;
    int *sum = malloc(sizeof *sum);
    if (sum)
        *sum = n[0] + n[1] + n[2];
    return sum;
}

/* Runs in the process that called ascetic_enter(), when the guest has ended. */
static void report(ascetic_sandbox *sandbox, const ascetic_outcome *outcome, void *user)
{
    uint64_t refused = ascetic_refusals(sandbox, NULL, NULL);
    if (WIFEXITED(outcome->guest))
        printf("%s: exit status %d, calls refused: %d\n", (char *)user, WEXITSTATUS(outcome->guest), refused > 0);
    else
        printf("%s: signal %d\n", (char *)user, WTERMSIG(outcome->guest));
    fflush(stdout);
}

static void fail(const ascetic_error *error)
{
    fprintf(stderr, "%s: %s\n", ascetic_strerror(error->code), error->text);
    exit(2);
}

int main(void)
{
    static const int keep[] = {0, 1, 2};
    ascetic_error error;
    ascetic_config config;
    ascetic_policy *policy = ascetic_policy_new();

    if (ascetic_policy_ordinary(policy, &error) < 0 || ascetic_policy_memory(policy, &error) < 0 ||
        ascetic_policy_threads(policy, 4, &error) < 0 ||
        ascetic_policy_file(policy, "/etc/hostname", ASCETIC_READ, &error) < 0)
        fail(&error);
    /* What may not be direct is refused now, with the reason, and not when it is too late. */
    if (ascetic_policy_direct_name(policy, "kill", &error) == ASCETIC_E_NOT_DIRECT)
        printf("no policy: %s\n", error.text);

    ascetic_config_init(&config, sizeof config);
    config.keep = keep;
    config.keep_len = 3;
    config.dispatch = 1;
    config.report = report;
    config.user = "supervisor";
    fflush(stdout); /* what is in the buffer now would be printed by both */
    if (ascetic_enter(policy, &config, &error) < 0)
        fail(&error);

    /* From here on this is a guest. */
    char name[256] = "";
    FILE *file = fopen("/etc/hostname", "r");
    int allowed = file && fgets(name, sizeof name, file) && fclose(file) == 0;
    name[strcspn(name, "\n")] = 0;
    printf("allowed: /etc/hostname says %s\n", allowed ? name : strerror(errno));

    int numbers[] = {1, 2, 3};
    pthread_t thread;
    void *sum = NULL;
    int threads = pthread_create(&thread, NULL, add, numbers) == 0 && pthread_join(thread, &sum) == 0 && sum;
    printf("thread: sum %d\n", threads ? *(int *)sum : -1);
    threads = threads && *(int *)sum == 6;
    free(sum);

    int refused = !fopen("/etc/shadow", "r") && errno == EACCES;
    printf("refused: /etc/shadow: %s\n", strerror(errno));
    return allowed && threads && refused && ascetic_is_guest() ? 0 : 1;
}
