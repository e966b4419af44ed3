# The gates: the only places from which U makes system calls
#
# Syscall user dispatch lets calls from here pass and turns all others into SIGSYS. It compares with the address behind
# the instruction, so the range ends behind the last one's.

# asc_gate(nr, a, b, c) -> result: one of the calls that strict mode allows
#
#   in        %edi nr   %rsi a   %rdx b   %rcx c
#   clobbers  %rax %rcx %rdx %rsi %rdi %r11
GATE_FUNC asc_gate
    mov     %edi, %eax
    mov     %rsi, %rdi
    mov     %rdx, %rsi
    mov     %rcx, %rdx
    syscall
    ret
END asc_gate

# asc_pass(nr, a, b, c, kicked) -> result: the same for a call that a signal of the guest's interrupts. A kick before the
# system call is either seen in *kicked, or its handler goes on at asc_pass_interrupted.
#
#   in        %edi nr   %rsi a   %rdx b   %rcx c   %r8 kicked
#   clobbers  %rax %rcx %rdx %rsi %rdi %r11
GATE_FUNC asc_pass
    mov     %edi, %eax
    mov     %rsi, %rdi
    mov     %rdx, %rsi
    mov     %rcx, %rdx
LABEL asc_pass_from
    cmpl    $0, (%r8)
    jne     asc_pass_interrupted
LABEL asc_pass_call
    syscall
    ret
LABEL asc_pass_interrupted
    mov     $-EINTR, %rax
    ret
END asc_pass

# CFI: the frame that the kernel saved, \at bytes from where the stack pointer points, has what all registers were.
.macro RESTORED at:req
    RESTORES_SP 7, \at + FRAME_REGISTERS + 15 * WORD
    .set REGISTER, FRAME_REGISTERS
    .irp reg, 8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2 # r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx
    RESTORES \reg, 7, \at + REGISTER
    .set REGISTER, REGISTER + WORD
    .endr
    RESTORES 16, 7, \at + FRAME_PC
.endm

# The restorer: a handler returns here. Strict mode allows rt_sigreturn.
RESTORER asc_restore
    mov     $NR_SIGRETURN, %eax
    syscall
    ud2
END asc_restore

# asc_sigreturn(ucontext): leaves a handler, and any that it interrupted, for the context that is given.
GATE_FUNC asc_sigreturn
    .cfi_undefined %rip
    mov     %rdi, %rsp
    mov     $NR_SIGRETURN, %eax
    syscall
    ud2
LABEL asc_gate_end
END asc_sigreturn

# asc_thread: where a new thread starts, on its alternate stack: %rdi state   %rsi number of the pair
FUNC asc_thread
    .cfi_undefined %rip
    xor     %ebp, %ebp
    jmp     {thread_start}
END asc_thread
