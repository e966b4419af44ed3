# Instructions that are there for the signal that they raise: src/fault/mod.rs and src/untrusted/signal/ know them by
# their addresses.

# asc_deliver(): the handler of SIGILL delivers what signals there are for the guest, and goes on behind the trap.
FUNC asc_deliver
LABEL asc_deliver_at
    ud2
    ret
END asc_deliver

# Where the guest's handlers return to: the handler of SIGILL takes their frame down. The first is for frames with a
# siginfo, the second for those without.
FUNC asc_return
    .cfi_undefined %rip
    ud2
LABEL asc_return_old
    ud2
END asc_return

# What ends the guest by a signal that somebody sent, when the reporter is done: the signal is blocked, so that the kernel
# takes the default action. asc_cause_bus reads where %rax points to, asc_cause_sys makes a call that is caught.
FUNC asc_cause
    .cfi_undefined %rip
LABEL asc_cause_ill
    ud2
LABEL asc_cause_fpe
    xor     %eax, %eax
    div     %eax
LABEL asc_cause_trap
    int3
LABEL asc_cause_bus
    mov     (%rax), %al
LABEL asc_cause_sys
    syscall
    ud2
END asc_cause
