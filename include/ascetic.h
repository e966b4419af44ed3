/* ascetic: seccomp strict mode with system calls, threads and honest crash reports.
 *
 * Made from capi/src by `cargo xtask header`; do not edit.
 *
 * What holds for all functions: a pointer is NULL where the text says so, or points to what its type says. What they
 * take they copy, but for what the text says otherwise. Functions that can fail return a negative ASCETIC_E_* and, if
 * `error` is not NULL, say more there; with 0 or more they succeeded, and `error` is untouched. A handle is used by one
 * thread at a time.
 */

#ifndef ASCETIC_H
#define ASCETIC_H

#include <stddef.h>
#include <stdint.h>

// An argument is NULL, or not one of the values that it may have.
#define ASCETIC_E_ARGUMENT -1

// No memory.
#define ASCETIC_E_MEMORY -2

// The call may not be direct: `text` says why.
#define ASCETIC_E_NOT_DIRECT -3

// There is no such system call.
#define ASCETIC_E_NO_CALL -4

// The path of a root is not absolute, or not plain.
#define ASCETIC_E_PATH -5

// A list of the policy is full.
#define ASCETIC_E_FULL -6

// The policy is that of a sandbox, and cannot change any more.
#define ASCETIC_E_IN_USE -7

// The sandbox is only lent, as to a report: it can be asked, but not waited for or killed.
#define ASCETIC_E_LENT -8

// Two things that the policy allows would together allow more than it says: `text` names both.
#define ASCETIC_E_CONFLICT -9

// The guest's stack is too small, or too large to map.
#define ASCETIC_E_STACK -20

// A descriptor to keep is not open.
#define ASCETIC_E_CLOSED_DESCRIPTOR -21

// The descriptor for crash reports is not open.
#define ASCETIC_E_CLOSED_CRASH_DESCRIPTOR -22

// ascetic_enter() in a process with more than one thread.
#define ASCETIC_E_MULTI_THREADED -23

// The entry audit found something that would let the guest out.
#define ASCETIC_E_FOUND -24

// The kernel has no seccomp.
#define ASCETIC_E_NO_SECCOMP -25

// The caller has a seccomp filter: strict mode is not to be had, ASCETIC_LOCKDOWN_FILTER is.
#define ASCETIC_E_FILTER_IN_FORCE -26

// The caller is in strict mode already.
#define ASCETIC_E_ALREADY_STRICT -27

// The placement asks for CPUs that the caller may not use.
#define ASCETIC_E_PLACEMENT -28

// A root of the policy cannot be opened, or is to be one file and is a folder.
#define ASCETIC_E_ROOT -29

// The kernel has no openat2 (Linux 5.6).
#define ASCETIC_E_NO_OPENAT2 -30

// The kernel has no syscall user dispatch (Linux 5.11).
#define ASCETIC_E_NO_DISPATCH -31

// A system call of the supervisor failed.
#define ASCETIC_E_SUPERVISOR -32

// A step of the set-up failed.
#define ASCETIC_E_SETUP -33

// The birth of a thread failed.
#define ASCETIC_E_BIRTH -34

// A task of the new sandbox ended before guest code ran.
#define ASCETIC_E_DIED -35

// The process uses tagged addresses (ARCH_ENABLE_TAGGED_ADDR).
#define ASCETIC_E_TAGGED_ADDRESSES -36

// A core is to have more bytes than the hard limit allows (RLIMIT_CORE).
#define ASCETIC_E_CORE_LIMIT -37

// Something else.
#define ASCETIC_E_OTHER -99

// The program that calls this library has to change something.
#define ASCETIC_PARTY_EMBEDDER 1

// The kernel, or how the machine is set up, has to change.
#define ASCETIC_PARTY_KERNEL 2

// This library has to change.
#define ASCETIC_PARTY_RUNTIME 3

// Bytes of an error's text, its zero included.
#define ASCETIC_TEXT 256

// Open for reading, list, look at attributes.
#define ASCETIC_READ 1

// Open for writing, truncate, change attributes.
#define ASCETIC_WRITE 2

// Create, rename and remove names.
#define ASCETIC_CREATE 4

// Map executable; of use only if all roots have it.
#define ASCETIC_EXECUTE 8

// Seccomp strict mode: read, write, exit and sigreturn.
#define ASCETIC_LOCKDOWN_STRICT 0

// The same four calls by a filter: where a filter is in force already, or `filter_read` and `filter_write` are of use.
#define ASCETIC_LOCKDOWN_FILTER 1

// Two CPUs while there are enough, else one.
#define ASCETIC_PLACEMENT_AUTO 0

// On one CPU.
#define ASCETIC_PLACEMENT_TOGETHER 1

// On two CPUs.
#define ASCETIC_PLACEMENT_APART 2

// Where the scheduler likes.
#define ASCETIC_PLACEMENT_FLOATING 3

// The guest ended: by itself, by a fault, or by a call that its lock-down forbids.
#define ASCETIC_CAUSE_GUEST 0

// The trusted thread ended, which it never does by itself; the guest was killed.
#define ASCETIC_CAUSE_TRUSTED_DIED 1

// The deadline passed; both were killed.
#define ASCETIC_CAUSE_DEADLINE 2

// ascetic_kill() was called.
#define ASCETIC_CAUSE_KILLED 3

// Nothing was done: the sandbox is another process's, and this handle a copy made by fork().
#define ASCETIC_CAUSE_FOREIGN 4

// For ascetic_wait() and ascetic_serve(): without end. No other number of milliseconds means that: one that is negative, as a
// time that is left and was computed may be, is over.
#define ASCETIC_FOREVER INT64_MAX

// Bytes that a crash record may have.
#define ASCETIC_RECORD_MAX 262144

// What a sandbox may do. What nothing allows is refused, with ENOSYS if nothing else is said.
typedef struct ascetic_policy ascetic_policy;

// A running sandbox, or one that has ended.
typedef struct ascetic_sandbox ascetic_sandbox;

// Why a call failed.
typedef struct ascetic_error {
    // What the call returned: ASCETIC_E_*
    int32_t code;
    // Who has to change something: ASCETIC_PARTY_*
    uint32_t party;
    // What the kernel said, as in errno; 0 if it was not asked.
    int32_t sys_errno;
    // The whole story in a sentence; cut if it is too long.
    char text[ASCETIC_TEXT];
} ascetic_error;

// Bytes of a socket address, from its first on: an address that begins so is allowed.
typedef struct ascetic_address {
    // A `struct sockaddr_*`, or as much of it as matters.
    const void *bytes;
    // How many bytes.
    size_t len;
} ascetic_address;

// What a sandbox may use at most.
typedef struct ascetic_limits {
    // Threads at once (1 to 256).
    uint32_t threads;
    // Numbers of descriptors below this are the guest's to use; 0 for no limit but the kernel's.
    uint32_t descriptors;
    // Bytes that the guest may map, beyond what it starts with; 0 for no limit but the kernel's.
    size_t mapped;
    // Calls a second that ask the supervisor; 0 for no limit. Calls beyond wait.
    uint32_t calls;
} ascetic_limits;

// Memory: its address and its length in bytes.
typedef struct ascetic_range {
    // Where it begins.
    const void *at;
    // How long it is.
    size_t len;
} ascetic_range;

// How a sandbox ended: the kernel's word for each task, for WIFEXITED() and the like.
typedef struct ascetic_outcome {
    // Why: ASCETIC_CAUSE_*
    uint32_t cause;
    // The guest's wait status.
    int guest;
    // The trusted thread's wait status.
    int trusted;
    // Tasks that were killed and have not ended, because they are in a call that cannot be interrupted. None runs guest code.
    uint32_t left;
} ascetic_outcome;

// Told, in the process that called ascetic_enter(), how the guest ended, before that process ends likewise. The sandbox is
// lent until it returns: ask it for its record, its refusals and its process ids.
typedef void (*ascetic_report)(struct ascetic_sandbox *sandbox,
                               const struct ascetic_outcome *outcome,
                               void *user);

// What a sandbox is to be. Begin with ascetic_config_init(), and change what is to be different.
typedef struct ascetic_config {
    // Bytes of this structure, as the program knows it; ascetic_config_init() sets it.
    size_t size;
    // Bytes of the guest's stack for ascetic_spawn(). ascetic_enter() keeps the caller's.
    size_t stack;
    // The descriptors that the guest keeps, under their numbers. All others are closed in the sandbox.
    const int *keep;
    // How many.
    size_t keep_len;
    // Memory that is writable and shared, and that the guest keeps; other such memory is an error.
    const struct ascetic_range *share;
    // How many.
    size_t share_len;
    // Where crash records go, a descriptor that is made non-blocking; -1 for memory, see ascetic_record().
    int crash;
    // How the guest is locked down: ASCETIC_LOCKDOWN_*
    uint32_t lockdown;
    // With ASCETIC_LOCKDOWN_FILTER, up to 8 descriptors that the guest's own read may use; NULL for all.
    const int *filter_read;
    // How many.
    size_t filter_read_len;
    // The same of its own write.
    const int *filter_write;
    // How many.
    size_t filter_write_len;
    // Where the guest and its trusted thread run: ASCETIC_PLACEMENT_*
    uint32_t placement;
    // How often they look before they sleep; -1 for what suits the placement.
    int32_t spin;
    // Whether calls that the guest makes itself, as ordinary code does, are caught (Linux 5.11); 0 if it uses
    // ascetic_call() only.
    int dispatch;
    // For ascetic_enter(): how many milliseconds the guest may run; 0 for no limit.
    uint32_t deadline_ms;
    // For ascetic_enter(): whom to tell how the guest ended; NULL for nobody.
    ascetic_report report;
    // What `report` is given.
    void *user;
    // Whether a call that the lock-down forbids, and that nobody catches, ends the guest by SIGSYS and with a record, not by
    // SIGKILL without one (Linux 5.11).
    int report_denied;
    // Whether the kernel is to dump a guest that crashes: the process is made dumpable, and the limit is `core_limit`.
    int core;
    // Bytes of a core, at most.
    size_t core_limit;
} ascetic_config;

// What a guest runs. What it returns is the exit status.
typedef int (*ascetic_entry)(void *arg);

// A refused call. Number, arguments, path and program counter are what the guest said: the path may have any characters, and
// is nothing to show on a terminal as it is.
typedef struct ascetic_refusal {
    // The call's number.
    uint32_t call;
    // What the guest was told, an errno.
    int32_t sys_errno;
    // The call's arguments.
    size_t args[6];
    // Where the guest made it.
    size_t pc;
    // The call's name; "?" if there is no such call. Not ended by a zero.
    const char *name;
    // Bytes of the name.
    size_t name_len;
    // The rule that refused it, in words. Not ended by a zero.
    const char *rule;
    // Bytes of the rule.
    size_t rule_len;
    // The first path of the call, as far as it is kept. Not ended by a zero.
    const char *path;
    // Bytes of the path.
    size_t path_len;
} ascetic_refusal;

// Told of a refusal, which is there until this returns.
typedef void (*ascetic_refused)(const struct ascetic_refusal *refusal, void *user);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What a code means, in general; what happened in one case, ascetic_error.text says better. Never NULL.
const char *ascetic_strerror(int32_t code);

// A policy that allows nothing but clock_gettime, with which the guest's rdtsc is answered. NULL if there is no memory.
struct ascetic_policy *ascetic_policy_new(void);

// Frees a policy, or nothing if it is NULL. Sandboxes that use it keep it until they are freed; meanwhile it is none for new
// ones, and freeing it again does nothing.
void ascetic_policy_free(struct ascetic_policy *policy);

// Allows what an ordinary program's libc needs besides files, memory and threads.
int ascetic_policy_ordinary(struct ascetic_policy *policy, struct ascetic_error *error);

// Allows a call by its number (`SYS_*` of <sys/syscall.h>), on its arguments alone. Fails with ASCETIC_E_NOT_DIRECT if
// that is not enough to decide on, and says why.
int ascetic_policy_direct(struct ascetic_policy *policy,
                          long call,
                          struct ascetic_error *error);

// ascetic_policy_direct() by the call's name, as "getppid".
int ascetic_policy_direct_name(struct ascetic_policy *policy, const char *name, struct ascetic_error *error);

// Refuses a call with an errno of its own (1 to 4095), whatever else allows it.
int ascetic_policy_refuse(struct ascetic_policy *policy,
                          long call,
                          uint32_t sys_errno,
                          struct ascetic_error *error);

// Refuses what is not allowed with this errno (1 to 4095) instead of ENOSYS, but for calls that a libc can do without when
// they are ENOSYS, and for those that are refused by name.
int ascetic_policy_default_errno(struct ascetic_policy *policy,
                                 uint32_t sys_errno,
                                 struct ascetic_error *error);

// Allows what `rights` (ASCETIC_READ | ...) say with the folder at `path` and what is below it, other mounts excepted. The
// path is absolute, without `.`, `..` and `//`. With no rights, all that may be known is that the folder itself is there: for
// those on the way to other roots, which realpath() and its like look at.
//
// A root in another must allow all that the other does, and no more if that has ASCETIC_CREATE: anything else could not be
// kept up, and is ASCETIC_E_CONFLICT.
int ascetic_policy_root(struct ascetic_policy *policy,
                        const char *path,
                        uint32_t rights,
                        struct ascetic_error *error);

// Allows what `rights` say with the one file at `path`. If there is a folder, there is no sandbox: ASCETIC_E_ROOT.
int ascetic_policy_file(struct ascetic_policy *policy,
                        const char *path,
                        uint32_t rights,
                        struct ascetic_error *error);

// Follows no symbolic link below any root.
int ascetic_policy_no_links(struct ascetic_policy *policy, struct ascetic_error *error);

// Where there are roots, allows locks (flock, fcntl) and flags of open files (F_SETFL): of every descriptor that the guest has.
// Those that it keeps it shares with this process.
int ascetic_policy_locks_and_flags(struct ascetic_policy *policy,
                                   struct ascetic_error *error);

// Allows to map, unmap and protect memory: not executable, unless ascetic_policy_executable() says so, too.
int ascetic_policy_memory(struct ascetic_policy *policy, struct ascetic_error *error);

// Allows to make memory executable, as a JIT compiler needs.
int ascetic_policy_executable(struct ascetic_policy *policy, struct ascetic_error *error);

// Refuses mappings that are writable and executable at once.
int ascetic_policy_w_xor_x(struct ascetic_policy *policy, struct ascetic_error *error);

// Allows an ioctl by its number. What it stores, it stores where the guest says.
int ascetic_policy_ioctl(struct ascetic_policy *policy, uint32_t number, struct ascetic_error *error);

// Allows to set and to ask for a socket option whose value has no pointers.
int ascetic_policy_option(struct ascetic_policy *policy,
                          uint32_t level,
                          uint32_t name,
                          struct ascetic_error *error);

// Allows sockets of a family (AF_*), and to connect to, bind and send to `count` addresses. With none, only what
// socketpair() makes and what the guest keeps is of use. An address of AF_UNIX
// below a root with ASCETIC_CREATE is ASCETIC_E_CONFLICT: the guest could have it lead elsewhere.
int ascetic_policy_family(struct ascetic_policy *policy,
                          uint16_t family,
                          const struct ascetic_address *addresses,
                          size_t count,
                          struct ascetic_error *error);

// Allows sockets of a protocol beside the family's usual ones: TCP streams and UDP datagrams of AF_INET and AF_INET6, 0 of
// all other families.
int ascetic_policy_protocol(struct ascetic_policy *policy,
                            uint16_t family,
                            uint32_t protocol,
                            struct ascetic_error *error);

// Allows sockets to listen, whatever their family. One of AF_INET or AF_INET6 that was not bound listens at all addresses of
// the machine, at a port that the kernel chooses.
int ascetic_policy_listen(struct ascetic_policy *policy,
                          struct ascetic_error *error);

// Allows the guest to send signals to its own threads. Without it, a thread can send itself what it handles, and the
// signals of the fault reporter.
int ascetic_policy_signals(struct ascetic_policy *policy,
                           struct ascetic_error *error);

// Allows this much of everything.
int ascetic_policy_limits(struct ascetic_policy *policy,
                          const struct ascetic_limits *limits,
                          struct ascetic_error *error);

// Allows this many threads at once (1 to 256), and leaves the other limits as they are.
int ascetic_policy_threads(struct ascetic_policy *policy, uint32_t threads, struct ascetic_error *error);

// Fills in the defaults: strict mode, no descriptors, no caught calls. `size` is `sizeof *config`, so that a program and a
// library that know different versions of it get along.
void ascetic_config_init(struct ascetic_config *config,
                         size_t size);

// Makes the caller the guest: returns 0 in the sandbox, in a copy of the calling process. That process itself supervises
// it, and never returns: after the configuration's report it ends as the guest ends. It must have one thread. What
// streams hold in their buffers goes into the copy: fflush() before. A failure is told in the calling process, which is
// then what it was before. `config` may be NULL.
int ascetic_enter(const struct ascetic_policy *policy,
                  const struct ascetic_config *config,
                  struct ascetic_error *error);

// Runs `entry(arg)` in a sandbox: in a child with a copy of this process's memory, as after fork(). `sandbox` gets a
// handle for it, which ascetic_free() ends. The guest's calls are answered while ascetic_wait() or ascetic_serve() runs.
// `config` may be NULL.
int ascetic_spawn(struct ascetic_policy *policy,
                  const struct ascetic_config *config,
                  ascetic_entry entry,
                  void *arg,
                  struct ascetic_sandbox **sandbox,
                  struct ascetic_error *error);

// Waits until the sandbox ends, and answers its calls meanwhile; kills it after `deadline_ms` milliseconds, unless that is
// ASCETIC_FOREVER. `outcome` may be NULL.
int ascetic_wait(struct ascetic_sandbox *sandbox,
                 int64_t deadline_ms,
                 struct ascetic_outcome *outcome,
                 struct ascetic_error *error);

// Waits for up to `timeout_ms` milliseconds, or ASCETIC_FOREVER, for one thing to do, and does it. 1 if the sandbox has
// ended, and then `outcome`, which may be NULL, is filled in; 0 if it has not.
int ascetic_serve(struct ascetic_sandbox *sandbox,
                  int64_t timeout_ms,
                  struct ascetic_outcome *outcome,
                  struct ascetic_error *error);

// A descriptor that is readable when ascetic_serve() has something to do: for whoever polls. -1 for NULL.
int ascetic_descriptor(const struct ascetic_sandbox *sandbox);

// After how many milliseconds to call ascetic_serve() although the descriptor is not readable; -1 for never, as poll() has it.
int64_t ascetic_patience(const struct ascetic_sandbox *sandbox);

// Kills all of a sandbox and waits for its end. `outcome` may be NULL.
int ascetic_kill(struct ascetic_sandbox *sandbox,
                 struct ascetic_outcome *outcome,
                 struct ascetic_error *error);

// Process ids of the first thread and its trusted thread. Either pointer may be NULL.
int ascetic_pids(const struct ascetic_sandbox *sandbox,
                 int *trusted,
                 int *guest,
                 struct ascetic_error *error);

// Copies what the crash reporter wrote to `room`, which has `len` bytes; ASCETIC_RECORD_MAX are enough. Returns how many
// there are: 0 if there was no crash, or the configuration's `crash` is where it is.
size_t ascetic_record(const struct ascetic_sandbox *sandbox,
                      void *room,
                      size_t len);

// Tells `each` of the last refused calls, the oldest first, and returns how many were refused in all. `each` may be NULL.
uint64_t ascetic_refusals(const struct ascetic_sandbox *sandbox,
                          ascetic_refused each,
                          void *user);

// Kills a sandbox that has not ended, and frees its handle, or nothing if it is NULL. One that is lent stays.
void ascetic_free(struct ascetic_sandbox *sandbox);

// Whether the caller is a guest: 1 or 0.
int ascetic_is_guest(void);

// Makes a system call of the guest's, with its six arguments: what it returns, or a negative errno. -EPERM outside a sandbox.
ptrdiff_t ascetic_call(long call,
                       const size_t *args);

// Ends the guest, all threads of it, with an exit status.
void ascetic_exit(int status) __attribute__((noreturn));

// Ends the guest with SIGABRT and a crash record.
void ascetic_abort(void) __attribute__((noreturn));

// Adds `key=value` to what a crash record says.
void ascetic_annotate(const char *key, const char *value);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ASCETIC_H */
