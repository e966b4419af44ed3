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

# asc_pass(nr, a, b, c, kicked) -> result: the same for a call that a signal of the guest's interrupts. A kick before the
# system call is either seen in *kicked, or its handler goes on at asc_pass_interrupted.
#
#   in        4(%esp) nr   8(%esp) a   12(%esp) b   16(%esp) c   20(%esp) kicked
#   clobbers  %eax %ecx %edx
GATE_FUNC asc_pass
    push    %ebx
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %ebx, 0
    push    %esi
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %esi, 0
    mov     3 * WORD(%esp), %eax
    mov     4 * WORD(%esp), %ebx
    mov     5 * WORD(%esp), %ecx
    mov     6 * WORD(%esp), %edx
    mov     7 * WORD(%esp), %esi
LABEL asc_pass_from
    cmpl    $0, (%esi)
    jne     asc_pass_interrupted
LABEL asc_pass_call
    int     $0x80
1:  pop     %esi
    .cfi_remember_state
    .cfi_adjust_cfa_offset -4
    .cfi_restore %esi
    pop     %ebx
    .cfi_adjust_cfa_offset -4
    .cfi_restore %ebx
    ret
    .cfi_restore_state
LABEL asc_pass_interrupted
    mov     $-EINTR, %eax
    jmp     1b
END asc_pass

# CFI: the frame that the kernel saved, \at bytes from where the stack pointer points, has what all registers were.
.macro RESTORED at:req
    RESTORES_SP 4, \at + FRAME_REGISTERS + 3 * WORD
    .set REGISTER, FRAME_REGISTERS
    .irp reg, 7, 6, 5, 4, 3, 2, 1, 0 # edi, esi, ebp, esp, ebx, edx, ecx, eax
    RESTORES \reg, 4, \at + REGISTER
    .set REGISTER, REGISTER + WORD
    .endr
    RESTORES 8, 4, \at + FRAME_PC
.endm

# The restorer: a handler returns here. Strict mode allows sigreturn, which wants the stack pointer at the sigcontext.
RESTORER asc_restore, WORD
    pop     %eax
    RESTORED 0
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
