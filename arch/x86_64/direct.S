# asc_direct: T's life
#
# Waits for a request in the mailbox, checks it in registers, makes the call, answers. Part of T's code, copied into
# the vault; entered from birth.S and never left.
#
#   parameters   %rbx vault   %rbp mailbox
#   locals       %r12d turn word as last taken or written   %r13d number of the last verdict (deep.S)
#                %r15d looks left before T parks (-1: told U that T sleeps; -2: parks)
#   temporaries  %rax %rcx %r11, and the argument registers %rdi %rsi %rdx %r10 %r8 %r9
#   constant     %rsp = 0
#
# Every mailbox word is U's to change at any time. Each is loaded at exactly one place, into a register, and the
# register is what is checked and used; nothing is loaded again before the next request. Only whether U sleeps is
# looked at in place, and often: all that it decides is whether U's own doorbell is rung.
#
# Must never: touch the stack; store outside the mailbox; branch through a register or memory; load a word twice.

# Loads argument \i into \reg and goes to the broker, which refuses, if it points into the vault, or if it is a descriptor (the kernel looks at
# its low 32 bits only) that the sandbox protects. %ecx is the policy row.
.macro TAKE_ARG i:req, reg:req, reg32:req
    mov     MAILBOX_ARGS + \i * WORD(%rbp), \reg
    mov     \reg, %r11
    sub     VAULT_LO(%rbx), %r11
    cmp     VAULT_LEN(%rbx), %r11
    jb      asc_deep
    test    $(1 << \i), %ecx
    jz      9f
    mov     \reg32, %r11d
    sub     VAULT_FD_LO(%rbx), %r11d
    cmp     VAULT_FD_LEN(%rbx), %r11d
    jb      asc_deep
9:
.endm

TRUSTED_FUNC asc_direct
    .cfi_undefined %rip
    xor     %r12d, %r12d
    xor     %r13d, %r13d

LABEL asc_direct_idle
    mov     VAULT_SPIN(%rbx), %r15d
LABEL asc_direct_poll
    mov     MAILBOX_TURN(%rbp), %ecx
    cmp     %r12d, %ecx
    jne     asc_direct_take
    cmpl    $0, MAILBOX_U_ASLEEP(%rbp)
    jne     asc_direct_ring
    dec     %r15d
    js      1f
    pause
    jmp     asc_direct_poll
1:  cmp     $-1, %r15d
    jne     2f
    movl    $1, MAILBOX_T_ASLEEP(%rbp)
    mfence                              # "T sleeps" and the last reply are out before the last look, at both words:
    jmp     asc_direct_poll             # U rings, or T sees the request; U sees the reply, or T rings
2:  mov     VERDICT_DOORBELL_T(%rbp), %edi
    lea     MAILBOX_SCRATCH(%rbp), %rsi
    mov     $EVENT_SIZE, %edx
    mov     $NR_READ, %eax
    syscall
    cmp     $EVENT_SIZE, %rax
    jne     asc_direct_die              # the doorbell is protected: something is very wrong
    movl    $0, MAILBOX_T_ASLEEP(%rbp)
    jmp     asc_direct_idle

LABEL asc_direct_ring                   # U says that it sleeps: at worst it is woken for nothing
    movl    $0, MAILBOX_U_ASLEEP(%rbp)
    mov     VERDICT_DOORBELL_U(%rbp), %edi
    lea     VAULT_ONE(%rbx), %rsi
    mov     $EVENT_SIZE, %edx
    mov     $NR_WRITE, %eax
    syscall                             # a result is of no use: U can spoil its own doorbell, and only that
    jmp     asc_direct_poll

LABEL asc_direct_take
    mov     %ecx, %r12d
    test    %r15d, %r15d
    jns     1f
    movl    $0, MAILBOX_T_ASLEEP(%rbp)
1:  mov     MAILBOX_NR(%rbp), %eax      # zero-extended: the kernel and the table see the same number
    cmp     $TABLE_LEN, %eax
    jae     asc_deep
    mov     VAULT_TABLE(%rbx, %rax, 4), %ecx
    test    $ROW_ALLOW, %ecx
    jz      asc_direct_other
    TAKE_ARG 0, %rdi, %edi
    test    $ROW_SMALL, %ecx
    jz      1f
    cmp     $SMALL, %edi
    jae     asc_deep
1:  TAKE_ARG 1, %rsi, %esi
    test    $ROW_FUTEX, %ecx
    jz      1f
    mov     %esi, %r11d
    and     $FUTEX_CMD_MASK, %r11d
    cmp     $32, %r11d
    jae     asc_deep
    bt      %r11d, VAULT_FUTEX_OPS(%rbx)
    jnc     asc_deep
1:
    TAKE_ARG 2, %rdx, %edx
    TAKE_ARG 3, %r10, %r10d
    TAKE_ARG 4, %r8, %r8d
    TAKE_ARG 5, %r9, %r9d
    syscall

LABEL asc_direct_reply
    mov     %rax, MAILBOX_RESULT(%rbp)
LABEL asc_direct_replied                # a script has stored the result
    inc     %r12d
    mov     %r12d, MAILBOX_TURN(%rbp)   # no fence: whether U sleeps is looked at again before T does
    jmp     asc_direct_idle

LABEL asc_direct_other
    test    $ROW_TOKEN, %ecx
    jnz     asc_token
    jmp     asc_deep                    # with all that is not allowed here, so that refusals are recorded

LABEL asc_direct_die
    mov     $EXIT_DOORBELL, %edi
    mov     $NR_EXIT, %eax
    syscall
    ud2
END asc_direct
