# asc_direct: T's life
#
# Waits for a request in the mailbox, checks it in registers, makes the call, answers. Part of T's code, copied into
# the vault; entered from birth.S and never left.
#
#   parameters   %xmm7 vault   %xmm6 mailbox
#   locals       %ebx vault   %ebp mailbox   %esi turn word as last taken or written
#                %edi looks left before T parks (-1: told U that T sleeps; -2: parks)
#   across calls %xmm7 vault, and in the next place the number of the last verdict (deep.S)   %xmm6 mailbox
#                %xmm5 turn word (a call takes every general register; not MMX: a pending x87 exception would fault)
#   temporaries  %eax %ecx %edx, and %edi (policy row) with %xmm0..%xmm4 (checked arguments) while a request is taken
#   constant     %esp = 0
#
# Every mailbox word is U's to change at any time. Each is loaded at exactly one place, into a register, and the
# register is what is checked and used; nothing is loaded again before the next request. Only whether U sleeps is
# looked at in place, and often: all that it decides is whether U's own doorbell is rung.
#
# int $0x80 only: sysenter reads a word from the stack.
# Must never: touch the stack; store outside the mailbox; branch through a register or memory; load a word twice.

# Loads argument \i into %ecx and goes to the broker, which refuses, if it points into the vault, or if it is a descriptor that the sandbox
# protects. %edi is the policy row.
.macro TAKE_ARG i:req
    mov     MAILBOX_ARGS + \i * WORD(%ebp), %ecx
    mov     %ecx, %edx
    sub     VAULT_LO(%ebx), %edx
    cmp     VAULT_LEN(%ebx), %edx
    jb      asc_deep
    test    $(1 << \i), %edi
    jz      9f
    mov     %ecx, %edx
    sub     VAULT_FD_LO(%ebx), %edx
    cmp     VAULT_FD_LEN(%ebx), %edx
    jb      asc_deep
9:
.endm

TRUSTED_FUNC asc_direct
    .cfi_undefined %eip
    xor     %esi, %esi
    movd    %esi, %xmm5

LABEL asc_direct_idle
    movd    %xmm7, %ebx
    movd    %xmm6, %ebp
    movd    %xmm5, %esi
    mov     VAULT_SPIN(%ebx), %edi
LABEL asc_direct_poll
    mov     MAILBOX_TURN(%ebp), %ecx
    cmp     %esi, %ecx
    jne     asc_direct_take
    cmpl    $0, MAILBOX_U_ASLEEP(%ebp)
    jne     asc_direct_ring
    dec     %edi
    js      1f
    pause
    jmp     asc_direct_poll
1:  cmp     $-1, %edi
    jne     2f
    movl    $1, MAILBOX_T_ASLEEP(%ebp)
    mfence                              # "T sleeps" and the last reply are out before the last look, at both words:
    jmp     asc_direct_poll             # U rings, or T sees the request; U sees the reply, or T rings
2:  lea     MAILBOX_SCRATCH(%ebp), %ecx
    mov     $EVENT_SIZE, %edx
    mov     VERDICT_DOORBELL_T(%ebp), %ebx
    mov     $NR_READ, %eax
    int     $0x80
    cmp     $EVENT_SIZE, %eax
    jne     asc_direct_die              # the doorbell is protected: something is very wrong
    movl    $0, MAILBOX_T_ASLEEP(%ebp)
    jmp     asc_direct_idle

LABEL asc_direct_ring                   # U says that it sleeps: at worst it is woken for nothing
    movl    $0, MAILBOX_U_ASLEEP(%ebp)
    lea     VAULT_ONE(%ebx), %ecx
    mov     $EVENT_SIZE, %edx
    mov     VERDICT_DOORBELL_U(%ebp), %ebx
    mov     $NR_WRITE, %eax
    int     $0x80                       # a result is of no use: U can spoil its own doorbell, and only that
    movd    %xmm7, %ebx
    jmp     asc_direct_poll

LABEL asc_direct_take
    movd    %ecx, %xmm5
    test    %edi, %edi
    jns     1f
    movl    $0, MAILBOX_T_ASLEEP(%ebp)
1:  mov     MAILBOX_NR(%ebp), %eax
    cmp     $TABLE_LEN, %eax
    jae     asc_deep
    mov     VAULT_TABLE(%ebx, %eax, 4), %edi
    test    $ROW_ALLOW, %edi
    jz      asc_direct_other
    TAKE_ARG 0
    movd    %ecx, %xmm0
    test    $ROW_SMALL, %edi
    jz      1f
    cmp     $SMALL, %ecx
    jae     asc_deep
1:  TAKE_ARG 1
    movd    %ecx, %xmm1
    test    $ROW_FUTEX, %edi
    jz      1f
    and     $FUTEX_CMD_MASK, %ecx
    cmp     $32, %ecx
    jae     asc_deep
    bt      %ecx, VAULT_FUTEX_OPS(%ebx)
    jnc     asc_deep
1:
    TAKE_ARG 2
    movd    %ecx, %xmm2
    TAKE_ARG 3
    movd    %ecx, %xmm3
    TAKE_ARG 4
    movd    %ecx, %xmm4
    TAKE_ARG 5
    mov     %ecx, %ebp
    movd    %xmm0, %ebx
    movd    %xmm1, %ecx
    movd    %xmm2, %edx
    movd    %xmm3, %esi
    movd    %xmm4, %edi
    int     $0x80

LABEL asc_direct_reply
    movd    %xmm6, %ebp
    mov     %eax, MAILBOX_RESULT(%ebp)
LABEL asc_direct_replied                # %ebp mailbox; a script has stored the result
    movd    %xmm5, %ecx
    inc     %ecx
    movd    %ecx, %xmm5
    mov     %ecx, MAILBOX_TURN(%ebp)    # no fence: whether U sleeps is looked at again before T does
    jmp     asc_direct_idle

LABEL asc_direct_other
    test    $ROW_TOKEN, %edi
    jnz     asc_token
    jmp     asc_deep                    # with all that is not allowed here, so that refusals are recorded

LABEL asc_direct_die
    mov     $EXIT_DOORBELL, %ebx
    mov     $NR_EXIT, %eax
    int     $0x80
    ud2
END asc_direct
