# asc_fault_entry: where the kernel enters U's signal handler, on U's alternate stack
#
#   in   (%esp) asc_restore   4 signal   8 sigcontext: the old frame, the only one that strict mode's sigreturn takes
#
# The kernel clears DF and TF and gives a clean FPU state, but leaves AC as the guest had it: with AC set, the first
# unaligned load of the reporter would fault.
FUNC asc_fault_entry
    pushfl
    .cfi_adjust_cfa_offset 4
    andl    $~EFLAGS_AC, (%esp)
    popfl
    .cfi_adjust_cfa_offset -4
    mov     1 * WORD(%esp), %eax
    lea     2 * WORD(%esp), %ecx
    push    %ecx                        # the kernel left %esp + 4 on 16 bytes: three words make a call aligned
    .cfi_adjust_cfa_offset 4
    push    $0                          # no siginfo in an old frame
    .cfi_adjust_cfa_offset 4
    push    %eax
    .cfi_adjust_cfa_offset 4
    call    {fault_handler}
    add     $3 * WORD, %esp
    .cfi_adjust_cfa_offset -12
    ret
END asc_fault_entry
