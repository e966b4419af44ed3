# asc_deep, asc_token: calls that T does not decide on registers alone
#
# Part of T's code; entered from direct.S with a request under way, left to its reply.
#
# asc_deep asks the broker. It says so in the mailbox, which is a hint, rings the alarm, which anybody can, and waits at
# the verdict's first word, which only T can: that it waits there is what the broker believes. The broker writes the
# verdict, then its number, then wakes T. A number other than the last one is executed, once: the number of the last is
# kept in a register, and a wait that finds another returns at once, so that no wake-up is lost.
#
# asc_deep_ask asks again, from a script: a clone has failed. asc_deep_bore is where T goes when one has not: it waits at a
# word of its own, so that the broker knows which, and without a ring, because the new tasks tell of themselves.
#
# asc_token opens a file in a way that the broker has approved before.
#
#   parameters   %rbx vault   %rbp mailbox   %r12d turn word   %r13d number of the last verdict
#   result       asc_deep: %r13d number of the verdict   %r15 its script
#   locals       %r15 where T waits
#   temporaries  %rax, the argument registers, %rcx, %r11
#
# Must never: touch the stack; store outside the mailbox; branch through a register or memory; load a word twice.
TRUSTED_FUNC asc_deep
    .cfi_undefined %rip
    mov     %r12d, MAILBOX_ASKS(%rbp)
LABEL asc_deep_ask
    lea     VERDICT_ASK(%rbp), %r15
LABEL asc_deep_ring
    mov     VAULT_ALARM(%rbx), %edi
    lea     VAULT_ONE(%rbx), %rsi
    mov     $EVENT_SIZE, %edx
    mov     $NR_WRITE, %eax
    syscall                             # a result is of no use: if nobody hears it, T rings again
LABEL asc_deep_wait
    mov     %r15, %rdi
    xor     %esi, %esi                  # FUTEX_WAIT, shared: the broker is another process
    mov     %r13d, %edx
    lea     VAULT_PATIENCE(%rbx), %r10
    xor     %r8d, %r8d
    xor     %r9d, %r9d
    mov     $NR_FUTEX, %eax
    syscall
    mov     VERDICT_SEQ(%rbp), %eax
    cmp     %r13d, %eax
    je      asc_deep_ring
    mov     %eax, %r13d
    lea     VERDICT_SCRIPT(%rbp), %r15
    jmp     asc_script

LABEL asc_deep_bore
    lea     VERDICT_BORE(%rbp), %r15
    jmp     asc_deep_wait
END asc_deep

TRUSTED_FUNC asc_token
    .cfi_undefined %rip
    mov     MAILBOX_ARGS(%rbp), %r11d
    cmp     $TOKENS, %r11d
    jae     asc_deep
    shl     $TOKEN_SHIFT, %r11d
    lea     VAULT_TOKENS(%rbx, %r11), %r11
    cmpl    $0, TOKEN_VALID(%r11)
    je      asc_deep
    mov     TOKEN_ROOT(%r11), %edi
    mov     TOKEN_REST(%r11), %esi
    lea     TOKEN_PATH(%r11, %rsi), %rsi
    lea     TOKEN_HOW(%r11), %rdx
    mov     $HOW_SIZE, %r10d
    mov     $NR_OPENAT2, %eax
    syscall
    jmp     asc_direct_reply
LABEL asc_trusted_end
END asc_token
