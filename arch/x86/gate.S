# The gates: the only places from which U makes system calls
#
# Syscall user dispatch lets calls from here pass and turns all others into SIGSYS. It compares with the address behind
# the instruction, so the range ends behind the last one's.

# asc_gate(nr, a, b, c) -> result: one of the calls that strict mode allows
#
#   in        4(%esp) nr   8(%esp) a   12(%esp) b   16(%esp) c
#   clobbers  %eax %ecx %edx
GATE_FUNC asc_gate
    push    %ebx
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %ebx, 0
    mov     2 * WORD(%esp), %eax
    mov     3 * WORD(%esp), %ebx
    mov     4 * WORD(%esp), %ecx
    mov     5 * WORD(%esp), %edx
    int     $0x80
    pop     %ebx
    .cfi_adjust_cfa_offset -4
    .cfi_restore %ebx
    ret
END asc_gate

# The restorer: a handler returns here. Strict mode allows sigreturn, which wants the stack pointer at the sigcontext.
GATE_FUNC asc_restore
    .cfi_undefined %eip
    pop     %eax
    mov     $NR_SIGRETURN, %eax
    int     $0x80
    ud2
END asc_restore

# asc_sigreturn(sigcontext): leaves a handler, and any that it interrupted, for the context that is given.
GATE_FUNC asc_sigreturn
    .cfi_undefined %eip
    mov     1 * WORD(%esp), %esp
    mov     $NR_SIGRETURN, %eax
    int     $0x80
    ud2
LABEL asc_gate_end
END asc_sigreturn

# asc_thread: where a new thread starts, on its alternate stack: %eax state   %edx number of the pair
FUNC asc_thread
    .cfi_undefined %eip
    xor     %ebp, %ebp
    and     $-16, %esp
    sub     $2 * WORD, %esp
    push    %edx
    push    %eax
    call    {thread_start}
    ud2
END asc_thread
