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
#   parameters   asc_deep: %xmm5 turn word   %xmm6 mailbox   %xmm7 vault, and in the next place the number of the last
#                verdict   asc_token: %ebx vault   %ebp mailbox
#   result       asc_deep: %xmm7 the number of the verdict   %esi its script   %ebx vault   %ebp mailbox
#   locals       %xmm3 where T waits
#   temporaries  every general register, %xmm0
#
# int $0x80 only: sysenter reads a word from the stack.
# Must never: touch the stack; store outside the mailbox; branch through a register or memory; load a word twice.
TRUSTED_FUNC asc_deep
    .cfi_undefined %eip
    movd    %xmm6, %ebp
    movd    %xmm5, %ecx
    mov     %ecx, MAILBOX_ASKS(%ebp)
LABEL asc_deep_ask
    lea     VERDICT_ASK(%ebp), %ecx
    movd    %ecx, %xmm3
LABEL asc_deep_ring
    movd    %xmm7, %ebp
    mov     VAULT_ALARM(%ebp), %ebx
    lea     VAULT_ONE(%ebp), %ecx
    mov     $EVENT_SIZE, %edx
    mov     $NR_WRITE, %eax
    int     $0x80                       # a result is of no use: if nobody hears it, T rings again
LABEL asc_deep_wait
    movd    %xmm7, %ebp
    lea     VAULT_PATIENCE(%ebp), %esi
    movd    %xmm6, %ebp
    movd    %xmm3, %ebx
    xor     %ecx, %ecx                  # FUTEX_WAIT, shared: the broker is another process
    pshufd  $1, %xmm7, %xmm0
    movd    %xmm0, %edx
    xor     %edi, %edi
    mov     $NR_FUTEX, %eax
    int     $0x80
    mov     VERDICT_SEQ(%ebp), %eax
    cmp     %edx, %eax
    je      asc_deep_ring
    movd    %xmm7, %ebx
    paddd   VAULT_SECOND(%ebx), %xmm7   # there is one verdict a wait: the next number
    lea     VERDICT_SCRIPT(%ebp), %esi
    jmp     asc_script_verdict

LABEL asc_deep_bore
    lea     VERDICT_BORE(%ebp), %ecx
    movd    %ecx, %xmm3
    jmp     asc_deep_wait
END asc_deep

TRUSTED_FUNC asc_token
    .cfi_undefined %eip
    mov     MAILBOX_ARGS(%ebp), %eax
    cmp     $TOKENS, %eax
    jae     asc_deep
    shl     $TOKEN_SHIFT, %eax
    lea     VAULT_TOKENS(%ebx, %eax), %edi
    cmpl    $0, TOKEN_VALID(%edi)
    je      asc_deep
    mov     TOKEN_ROOT(%edi), %ebx
    mov     TOKEN_REST(%edi), %ecx
    lea     TOKEN_PATH(%edi, %ecx), %ecx
    lea     TOKEN_HOW(%edi), %edx
    mov     $HOW_SIZE, %esi
    mov     $NR_OPENAT2, %eax
    int     $0x80
    jmp     asc_direct_reply
LABEL asc_trusted_end
END asc_token
