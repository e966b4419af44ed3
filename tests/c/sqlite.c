/* SQLite as a guest: a database in the one folder that it may use, whose name is the argument, with each kind of journal,
 * and with somebody outside who holds a lock. What it wrote is read again outside, when it has ended. */

#include "guest.h"
#include <sqlite3.h>
#include <unistd.h>

enum { ROWS = 1000 };

static char path[1024], neighbour[1024];
static int to_holder[2], from_holder[2];

static int run(sqlite3 *db, const char *sql)
{
    char *message = NULL;
    int result = sqlite3_exec(db, sql, NULL, NULL, &message);

    if (result != SQLITE_OK && result != SQLITE_BUSY)
        printf("%s: %s\n", sql, message ? message : sqlite3_errstr(result));
    sqlite3_free(message);
    return result;
}

/* The first column of the first row, as text. */
static const char *ask(sqlite3 *db, const char *sql)
{
    static char text[64];
    sqlite3_stmt *statement;

    strcpy(text, "?");
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
        snprintf(text, sizeof text, "%s", (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    return text;
}

static void insert(sqlite3 *db, const char *journal)
{
    sqlite3_stmt *statement;
    char sql[64];

    snprintf(sql, sizeof sql, "PRAGMA journal_mode = %s", journal);
    MUST(strcmp(ask(db, sql), journal) == 0);
    MUST(run(db, "BEGIN") == SQLITE_OK);
    MUST(sqlite3_prepare_v2(db, "INSERT INTO numbers VALUES (?, ?, hex(randomblob(100)))", -1, &statement, NULL) == 0);
    for (int i = 0; i < ROWS; i++) {
        sqlite3_bind_int(statement, 1, i);
        sqlite3_bind_text(statement, 2, journal, -1, SQLITE_STATIC);
        MUST(sqlite3_step(statement) == SQLITE_DONE && sqlite3_reset(statement) == SQLITE_OK);
    }
    MUST(sqlite3_finalize(statement) == SQLITE_OK && run(db, "COMMIT") == SQLITE_OK);
    MUST(run(db, "BEGIN; DELETE FROM numbers; ROLLBACK") == SQLITE_OK);
}

/* A process beside the sandbox that holds the database locked until it is told to let go. */
static void hold(void)
{
    sqlite3 *db;
    char byte;

    close(to_holder[1]); /* so that a guest that ends early is the end of this, too */
    MUST(sqlite3_open(path, &db) == SQLITE_OK && run(db, "CREATE TABLE numbers (n, journal, noise)") == SQLITE_OK);
    MUST(run(db, "BEGIN IMMEDIATE") == SQLITE_OK);
    MUST(write(from_holder[1], "l", 1) == 1 && read(to_holder[0], &byte, 1) == 1);
    usleep(100000); /* the guest waits for the lock meanwhile */
    MUST(run(db, "COMMIT") == SQLITE_OK && sqlite3_close(db) == SQLITE_OK);
    _exit(0);
}

/* Allows everything in the folder that a file is in. SQLite looks whether a folder on the way there is a symbolic link. */
static void allow_folder(ascetic_policy *policy, const char *file)
{
    char folder[sizeof path];

    MUST(ascetic_policy_root(policy, "/", 0, NULL) == 0);
    for (const char *end = strchr(file + 1, '/'); end; end = strchr(end + 1, '/')) {
        int last = !strchr(end + 1, '/');
        snprintf(folder, sizeof folder, "%.*s", (int)(end - file), file);
        MUST(ascetic_policy_root(policy, folder, last ? ASCETIC_READ | ASCETIC_WRITE | ASCETIC_CREATE : 0, NULL) == 0);
    }
}

static void look_again(void)
{
    sqlite3 *db;

    MUST(sqlite3_open(path, &db) == SQLITE_OK);
    printf("outside: %s rows,", ask(db, "SELECT count(*) FROM numbers"));
    printf(" integrity %s\n", ask(db, "PRAGMA integrity_check"));
    sqlite3_close(db);
}

int main(int argc, char **argv)
{
    static const char *const calls[] = {"pread64",   "pwrite64", "fsync",           "fdatasync",
                                        "ftruncate", "close",    "clock_nanosleep", NULL};
    static const char *const journals[] = {"delete", "truncate", "persist", "wal", "memory", NULL};
    static void (*afterwards)(void) = look_again;
    ascetic_policy *policy = ascetic_policy_new();
    sqlite3 *db;
    char byte;

    MUST(argc == 2 && pipe(to_holder) == 0 && pipe(from_holder) == 0);
    snprintf(path, sizeof path, "%s/inside/numbers.db", argv[1]);
    snprintf(neighbour, sizeof neighbour, "%s/neighbour.db", argv[1]);
    MUST(sqlite3_open(neighbour, &db) == SQLITE_OK && run(db, "CREATE TABLE secrets (s)") == SQLITE_OK);
    MUST(sqlite3_close(db) == SQLITE_OK);

    fflush(stdout);
    if (fork() == 0)
        hold();
    MUST(read(from_holder[0], &byte, 1) == 1);

    allow(policy, calls);
    MUST(ascetic_policy_memory(policy, NULL) == 0 && ascetic_policy_locks_and_flags(policy, NULL) == 0);
    allow_folder(policy, path);
    become_guest(policy, (int[]){0, 1, 2, to_holder[1]}, 4, &afterwards);

    MUST(sqlite3_open(path, &db) == SQLITE_OK);
    MUST(run(db, "INSERT INTO numbers VALUES (0, '', '')") == SQLITE_BUSY);
    MUST(sqlite3_busy_timeout(db, 5000) == SQLITE_OK && write(to_holder[1], "g", 1) == 1);
    for (const char *const *journal = journals; *journal; journal++) {
        insert(db, *journal);
        MUST(atoi(ask(db, "SELECT count(*) FROM numbers")) == ROWS * (journal - journals + 1));
    }
    /* What is temporary would go to /var/tmp. */
    MUST(run(db, "PRAGMA temp_store = MEMORY; CREATE INDEX by_noise ON numbers (noise); VACUUM") == SQLITE_OK);
    MUST(strcmp(ask(db, "SELECT sum(n) FROM numbers"), "2497500") == 0);
    printf("inside: %s rows,", ask(db, "SELECT count(*) FROM numbers"));
    printf(" integrity %s\n", ask(db, "PRAGMA integrity_check"));
    MUST(sqlite3_close(db) == SQLITE_OK);

    MUST(sqlite3_open(neighbour, &db) == SQLITE_CANTOPEN);
    printf("neighbour: %s\n", sqlite3_errmsg(db));
    sqlite3_close(db);
    return 0;
}
