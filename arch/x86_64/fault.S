# asc_fault_entry: where the kernel enters U's signal handler, on U's alternate stack
#
#   in   %edi signal   %rsi siginfo   %rdx ucontext   (%rsp) asc_restore
#
# The kernel clears DF and TF and gives a clean FPU state, but leaves AC as the guest had it: with AC set, the first
# unaligned load of the reporter would fault.
FUNC asc_fault_entry
    pushfq
    .cfi_adjust_cfa_offset 8
    andq    $~EFLAGS_AC, (%rsp)
    popfq
    .cfi_adjust_cfa_offset -8
    jmp     {fault_handler}
END asc_fault_entry
