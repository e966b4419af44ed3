/* zlib as a guest: four threads compress and decompress 25 MB each. There may be no fifth, and no files. */

#include "guest.h"
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>
#include <zlib.h>

enum { THREADS = 4, LEN = 25 * 1024 * 1024, PIECE = 64 * 1024 };

static pthread_barrier_t all;

/* Something like text: words of a small vocabulary. */
static void fill(unsigned char *bytes, uint32_t seed)
{
    for (size_t i = 0; i < LEN; i++) {
        if (i % 8 == 0)
            seed = seed * 1664525 + 1013904223;
        bytes[i] = (unsigned char)('a' + (seed >> 28) + i % 8);
    }
}

/* The length of the compressed bytes; 0 if something is wrong. */
static uintptr_t there_and_back(uint32_t seed)
{
    unsigned char *plain = malloc(LEN), *packed = malloc(LEN), piece[PIECE];
    z_stream out = {0}, in = {0};
    uLong packed_len;
    size_t done = 0;
    int result;

    if (!plain || !packed || deflateInit(&out, 1) != Z_OK || inflateInit(&in) != Z_OK)
        return 0;
    fill(plain, seed);
    out.next_in = plain;
    out.next_out = packed;
    out.avail_out = LEN;
    for (size_t i = 0; i < LEN; i += PIECE) {
        out.avail_in += PIECE;
        if (deflate(&out, i + PIECE < LEN ? Z_NO_FLUSH : Z_FINISH) < Z_OK)
            return 0;
    }
    packed_len = out.total_out;
    in.next_in = packed;
    in.avail_in = (uInt)packed_len;
    do {
        in.next_out = piece;
        in.avail_out = PIECE;
        result = inflate(&in, Z_NO_FLUSH);
        if (result < Z_OK || memcmp(piece, plain + done, PIECE - in.avail_out) != 0)
            return 0;
        done += PIECE - in.avail_out;
    } while (result != Z_STREAM_END);
    result = done == LEN && in.adler == adler32(adler32(0, NULL, 0), plain, LEN);
    deflateEnd(&out);
    inflateEnd(&in);
    free(plain);
    free(packed);
    return result ? packed_len : 0;
}

static void *work(void *seed)
{
    pthread_barrier_wait(&all);
    return (void *)there_and_back((uint32_t)(uintptr_t)seed);
}

int main(void)
{
    static const char *const calls[] = {"futex", NULL};
    ascetic_policy *policy = ascetic_policy_new();
    pthread_t threads[THREADS], fifth;

    allow(policy, calls);
    MUST(ascetic_policy_memory(policy, NULL) == 0 && ascetic_policy_threads(policy, 1 + THREADS, NULL) == 0);
    become_guest(policy, (int[]){1, 2}, 2, NULL);

    MUST(pthread_barrier_init(&all, NULL, THREADS + 1) == 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    MUST(pthread_create(&fifth, NULL, work, NULL) == EAGAIN);
    MUST(!fopen("/etc/hostname", "r") && errno == ENOSYS);
    pthread_barrier_wait(&all);
    for (int i = 0; i < THREADS; i++) {
        void *len = NULL;
        MUST(pthread_join(threads[i], &len) == 0 && len && (uintptr_t)len < LEN / 2);
    }
    printf("threads: %d, bytes there and back: %d\n", THREADS, THREADS * LEN);
    return 0;
}
