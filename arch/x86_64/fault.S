# asc_fault_entry: where the kernel enters U's signal handler, on U's alternate stack
#
#   in   %edi signal   %rsi siginfo   %rdx ucontext   (%rsp) asc_restore
#
# The kernel clears DF and TF and gives a clean FPU state, but leaves AC as the guest had it: with AC set, the first
# unaligned load of the reporter would fault.
#
# A call that the guest made itself is left without another: behind `syscall`, %rcx is the program counter and %r11 the
# flags, so all registers can be put back by hand, for less than half of what rt_sigreturn takes. fault::handler says when
# (result not 0); nothing but registers must have to be put back. A signal that comes meanwhile finds either the frame whole, and
# may go on from there (before asc_leave_rest), or nothing left to put back but %rsp, %rcx and %rip
# (Frame::finish_leaving).
FUNC asc_fault_entry
    pushfq
    .cfi_adjust_cfa_offset 8
    andq    $~EFLAGS_AC, (%rsp)
    popfq
    .cfi_adjust_cfa_offset -8
    push    %rdx
    .cfi_adjust_cfa_offset 8
    call    {fault_handler}
    pop     %rcx                        # the frame
    .cfi_adjust_cfa_offset -8
    test    %eax, %eax
    jz      1f
    xor     %eax, %eax
    rdsspq  %rax                        # a shadow stack has a frame, too: the kernel takes it down
    test    %rax, %rax
    jz      2f
1:  ret
2:  .cfi_undefined %rip
LABEL asc_leave_from
    mov     FRAME_FPSTATE(%rcx), %rsi
    mov     FPSTATE_FEATURES(%rsi), %eax
    mov     FPSTATE_FEATURES + 4(%rsi), %edx
    xrstor64 (%rsi)
    push    FRAME_EFLAGS(%rcx)
    popfq
    .set REGISTER, FRAME_REGISTERS
    .irp reg, r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax
    mov     REGISTER(%rcx), %\reg
    .set REGISTER, REGISTER + WORD
    .endr
    lea     FRAME_SP(%rcx), %rsp
LABEL asc_leave_rest
    mov     FRAME_PC - FRAME_SP(%rsp), %rcx
    mov     (%rsp), %rsp
LABEL asc_leave_jump
    jmp     *%rcx
END asc_fault_entry

# asc_block(frame): goes on where it is, with the mask and the alternate stack of a frame that is otherwise empty
#
#   in        %rdi frame
#   clobbers  the registers that a call may
FUNC asc_block
    .irp reg, rbx, rbp, r12, r13, r14, r15
    push    %\reg
    .cfi_adjust_cfa_offset 8
    .endr
    mov     %rsp, FRAME_SP(%rdi)
    lea     1f(%rip), %rax
    mov     %rax, FRAME_PC(%rdi)
    jmp     asc_sigreturn
1:  .irp reg, r15, r14, r13, r12, rbp, rbx
    pop     %\reg
    .cfi_adjust_cfa_offset -8
    .endr
    ret
END asc_block
